//! What the server is asked to compress with.

use protocol::compression::{Method, Specification, WireCompression};
use protocol::features::Feature;

use crate::error::{Error, Result};
use crate::options::{Format, Options};
use crate::report;
use crate::server::connection::Session;
use crate::server::route;

/// What the user wants of the server, as far as that has it; an error where it has nothing of the kind.
pub(super) fn of_server(options: &Options, coordinator: &mut Session) -> Result<WireCompression> {
    let Some(wanted) = options.compress.of_server() else { return Ok(WireCompression::default()) };
    let is_tar = options.format == Format::Tar;
    if is_tar && wanted.method == Method::Gzip {
        report::warning("the server does not compress with gzip, archives are compressed by this program");
        return Ok(WireCompression::default());
    }
    let (asked, remark) = asked_for(wanted)?;
    let feature =
        if asked.algorithm == protocol::frame::Compression::Lz4 { Feature::Lz4 } else { Feature::Zstd };
    let features = route::features(coordinator)?;
    if !features.has(feature) || is_tar && !features.has(Feature::StreamChecksum) {
        return Err(Error::local("server does not support server-side compression")
            .with_hint("The extension pg_parallel_backup of the server is older than 0.3.0."));
    }
    if let Some(remark) = remark {
        report::warning(remark);
    }
    Ok(asked)
}

/// The same as the commands have it, and what is to be said where it is not quite what the user wants.
fn asked_for(wanted: Specification) -> Result<(WireCompression, Option<&'static str>)> {
    let (asked, remark) = if wanted.method == Method::Gzip {
        let zstd = Specification { method: Method::Zstd, ..Specification::default() };
        (zstd, Some("the server does not compress with gzip, zstd is used on the way"))
    } else if wanted.workers.is_some_and(|workers| workers != 0) {
        (
            Specification { workers: None, ..wanted },
            Some("workers are ignored: each connection compresses by itself, use more of them (-j)"),
        )
    } else {
        (wanted, None)
    };
    let asked = WireCompression::try_from(asked).map_err(|error| Error::local(error.to_string()))?;
    Ok((asked, remark))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{self, Invocation};
    use crate::server::fake_server::{FakeServer, message, ready, report};
    use protocol::frame::Compression;

    #[test]
    fn what_the_server_has_no_word_for() {
        let asked = |method, detail| asked_for(Specification::parse(method, detail).unwrap()).unwrap();
        let zstd = WireCompression { algorithm: Compression::Zstd, level: None, long: false };
        assert_eq!(asked(Method::Zstd, None), (zstd, None));
        assert_eq!(
            asked(Method::Zstd, Some("level=7,long")).0,
            WireCompression { level: Some(7), long: true, ..zstd }
        );
        let (gzip, remark) = asked(Method::Gzip, Some("9"));
        assert_eq!(gzip, zstd);
        assert!(remark.unwrap().contains("gzip"));
        let (workers, remark) = asked(Method::Zstd, Some("level=2,workers=4"));
        assert_eq!(workers, WireCompression { level: Some(2), ..zstd });
        assert!(remark.unwrap().contains("workers"));
        assert_eq!(asked(Method::Zstd, Some("workers=0")), (zstd, None));
    }

    /// What SHOW answers.
    fn setting(value: &str) -> Vec<u8> {
        let column = [&b"\0\x01setting\0"[..], &[0; 18]].concat();
        let length = u32::try_from(value.len()).unwrap().to_be_bytes();
        let row = [&b"\0\x01"[..], &length, value.as_bytes()].concat();
        [message(b'T', &column), message(b'D', &row), message(b'C', b"SHOW\0"), ready()].concat()
    }

    fn of_server_that_has(features: Vec<u8>, arguments: &[&str]) -> Result<WireCompression> {
        let arguments = [&["pg_parallel_basebackup", "-D", "x", "-X", "none"], arguments].concat();
        let arguments = arguments.into_iter().map(std::ffi::OsString::from).collect::<Vec<_>>();
        let Invocation::Backup(options) = options::parse(arguments).unwrap() else { panic!("no backup") };
        let server = FakeServer::start(vec![features]);
        let outcome = of_server(&options, &mut server.connect());
        assert_eq!(server.commands(), ["SHOW pg_parallel_backup.features"]);
        outcome
    }

    #[test]
    fn archives_need_checksums_of_streams() {
        let (zstd, lz4) = (["-Ft", "-Z", "server-zstd:1"], ["-Ft", "-Z", "server-lz4"]);
        let plain = ["-Fp", "-Z", "server-zstd:1"];
        let without = "lz4, zstd, lease, incremental";
        for archive in [zstd, lz4] {
            let error = of_server_that_has(setting(without), &archive).unwrap_err();
            assert_eq!(error.message(), "server does not support server-side compression");
            assert!(error.hint().unwrap().contains("older than 0.3.0"), "{error:?}");
            assert!(of_server_that_has(setting("lz4, zstd, stream_checksum"), &archive).is_ok());
        }
        // What is decompressed here has the checksums of files.
        assert_eq!(of_server_that_has(setting(without), &plain).unwrap().algorithm, Compression::Zstd);
        let unknown =
            [report(b'E', "ERROR", "42704", "unrecognized configuration parameter"), ready()].concat();
        for arguments in [zstd, lz4, plain] {
            assert!(of_server_that_has(unknown.clone(), &arguments).is_err());
        }
        assert!(of_server_that_has(setting("zstd, stream_checksum"), &lz4).is_err());
    }
}
