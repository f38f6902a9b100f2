//! What stores say when something fails, in one line, and without what is secret: answers may quote a request with its signature
//! and its token, and URLs may be signed.

use std::error::Error as _;

use object_store::Error;

/// Longest text that is passed on.
const LENGTH: usize = 300;

/// The reason of a failure.
pub fn words(error: &Error) -> String {
    let mut text = error.to_string();
    // The innermost reason says most where the network failed.
    let mut source = error.source();
    let mut innermost = None;
    while let Some(cause) = source {
        innermost = Some(cause.to_string());
        source = cause.source();
    }
    if let Some(said) = said(&text) {
        return match error {
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                format!("permission denied: {said}")
            }
            _ => said,
        };
    }
    match error {
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            return "permission denied".to_owned();
        }
        Error::NotFound { .. } => return "not found".to_owned(),
        _ => {}
    }
    if let Some(innermost) = innermost.filter(|innermost| !text.contains(innermost.as_str())) {
        text = format!("{text}: {innermost}");
    }
    cut(&without_queries(&text))
}

/// What the server itself says: S3's and Azure's answers are XML with a code and a message.
fn said(text: &str) -> Option<String> {
    let element = |name: &str| {
        let begin = text.find(&format!("<{name}>"))? + name.len() + 2;
        let length = text[begin..].find(&format!("</{name}>"))?;
        Some(text[begin..begin + length].trim())
    };
    let code = element("Code")?;
    Some(match element("Message") {
        Some(message) if !message.is_empty() => cut(&without_queries(&format!("{message} ({code})"))),
        _ => cut(code),
    })
}

/// Without anything behind a question mark, up to where a word ends.
fn without_queries(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut is_query = false;
    for character in text.chars() {
        if character.is_whitespace() || matches!(character, '"' | ')' | '>' | '<' | ',') {
            is_query = false;
        } else if character == '?' {
            is_query = true;
        }
        if !is_query {
            result.push(if character.is_control() { ' ' } else { character });
        }
    }
    result
}

fn cut(text: &str) -> String {
    let text = text.trim();
    match text.char_indices().nth(LENGTH) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_secret_is_passed_on() {
        let generic = |text: &str| words(&Error::Generic { store: "S3", source: text.to_owned().into() });
        let xml = "status 403: <?xml?><Error><Code>SignatureDoesNotMatch</Code><Message>The signature is wrong</Message>\
            <CanonicalRequest>x-amz-security-token:TOKEN</CanonicalRequest></Error>";
        assert_eq!(generic(xml), "The signature is wrong (SignatureDoesNotMatch)");
        let text = generic("error sending request for url (https://a.blob/c/x?sv=1&sig=SECRET), gave up");
        assert!(text.contains("(https://a.blob/c/x), gave up") && !text.contains("SECRET"), "{text}");
        assert!(generic(&"x".repeat(5000)).len() < 400);
        let denied = Error::PermissionDenied { path: "p".into(), source: "TOKEN".into() };
        assert_eq!(words(&denied), "permission denied");
    }
}
