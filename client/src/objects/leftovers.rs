//! What a backup to a prefix leaves that was interrupted, and how that is removed: in an order in which it can be begun again.

use super::claim::{CLAIM, Claim};
use super::remote::{Object, Remote};
use crate::catalog::index::INDEX;
use crate::error::{Error, Result};
use crate::output::MANIFEST;
use crate::report;

/// Behind a volume's name, the object that has the id of its upload.
const UPLOAD: &str = ".upload";

/// What there is below a prefix.
#[derive(Debug)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// What a backup has left, or is writing.
    Claimed(Claim, Vec<Object>),
}

/// What marks a volume that is being uploaded.
pub fn marker(volume: &str) -> String {
    format!("{volume}{UPLOAD}")
}

/// Looks at what is there. Fails if a backup, or something else, is.
pub fn look(remote: &Remote) -> Result<Found> {
    let objects = remote.list()?;
    if objects.is_empty() {
        return Ok(Found::Nothing);
    }
    let location = remote.location();
    if objects.iter().any(|object| object.name == INDEX) {
        return Err(Error::local(format!("\"{location}\" has a backup already")));
    }
    match Claim::of(remote)? {
        Some(claim) => Ok(Found::Claimed(claim, objects)),
        None => Err(Error::local(format!("\"{location}\" exists but is not empty"))),
    }
}

/// Removes what a backup has left whose process is no more. Fails where it may be there.
pub fn take_over(remote: &Remote, claim: &Claim, objects: &[Object]) -> Result<()> {
    if !claim.is_over() {
        return Err(claim.refusal(remote));
    }
    report::warning(format_args!(
        "removing what an interrupted backup has left below \"{}\", {} objects",
        remote.location(),
        objects.len()
    ));
    remove(remote, objects, &mut |_| {})?;
    // Or somebody else has been quicker.
    match Claim::of(remote)? {
        Some(now) if now.run == claim.run => remote.delete(CLAIM),
        _ => Ok(()),
    }
}

/// --remove-leftovers: says what it removes.
pub fn remove_all(remote: &Remote) -> Result<()> {
    let objects = remote.list()?;
    let location = remote.location();
    if objects.iter().any(|object| object.name == INDEX) {
        return Err(Error::local(format!("\"{location}\" has a complete backup"))
            .with_hint("Only what an interrupted backup has left is removed so."));
    }
    let (ours, others): (Vec<_>, Vec<_>) = objects.into_iter().partition(|object| is_ours(&object.name));
    if ours.is_empty() {
        report::info(format_args!("nothing is left of a backup below \"{location}\""));
    }
    remove(remote, &ours, &mut |line| report::info(line))?;
    if ours.iter().any(|object| object.name == CLAIM) {
        report::info(format!("removing \"{}\"", remote.shown(CLAIM)));
        remote.delete(CLAIM)?;
    }
    match others.first() {
        None => Ok(()),
        Some(object) => Err(Error::local(format!(
            "\"{}\" is of no backup, and was left alone",
            remote.shown(&object.name)
        ))),
    }
}

/// Everything but the claim, and nothing that is of no backup.
pub fn remove(remote: &Remote, objects: &[Object], say: &mut dyn FnMut(String)) -> Result<()> {
    for Object { name, .. } in objects {
        if let Some(volume) = name.strip_suffix(UPLOAD).filter(|volume| is_volume(volume)) {
            let id = remote.get(name)?.and_then(|id| String::from_utf8(id).ok());
            if let Some(id) = id {
                say(format!("aborting the upload of \"{}\"", remote.shown(volume)));
                remote.give_up(volume, &id)?;
            }
            remote.delete(name)?;
        }
    }
    for Object { name, size } in objects {
        if is_volume(name) || name == MANIFEST {
            say(format!("removing \"{}\", {} kB", remote.shown(name), size >> 10));
            remote.delete(name)?;
        }
    }
    Ok(())
}

fn is_ours(name: &str) -> bool {
    name == CLAIM || name == MANIFEST || is_volume(name.strip_suffix(UPLOAD).unwrap_or(name))
}

/// Whether a name is that of a volume: `base`, `pg_wal` or an OID, a number, `.tar` and what compression adds.
fn is_volume(name: &str) -> bool {
    let mut parts = name.splitn(3, '.');
    let (stem, number, suffix) = (parts.next(), parts.next(), parts.next());
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    stem.is_some_and(|stem| matches!(stem, "base" | "pg_wal") || is_number(stem))
        && number.is_some_and(|number| number.len() >= 5 && is_number(number))
        && suffix.is_some_and(|suffix| matches!(suffix, "tar" | "tar.gz" | "tar.lz4" | "tar.zst"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::abort::Abort;
    use crate::objects::location::{Location, Scheme};

    fn remote() -> Remote {
        let location = Location { scheme: Scheme::S3, bucket: "b".into(), prefix: "one/two".into() };
        Remote::in_memory(&location, &Arc::new(Abort::new().unwrap()))
    }

    fn names(remote: &Remote) -> Vec<String> {
        let mut names: Vec<_> = remote.list().unwrap().into_iter().map(|object| object.name).collect();
        names.sort_unstable();
        names
    }

    fn gone() -> Claim {
        let mut claim = Claim::new().unwrap();
        claim.identity.as_mut().unwrap().began -= 1;
        claim
    }

    #[test]
    fn names_of_volumes() {
        for name in ["base.00001.tar", "16384.00002.tar.zst", "pg_wal.123456.tar.gz", "base.00001.tar.lz4"] {
            assert!(is_volume(name) && is_ours(&marker(name)), "{name}");
        }
        for name in [
            "base.tar",
            "base.1.tar",
            "base.0000x.tar",
            "x.00001.tar",
            "base.00001.tar.bz2",
            ".00001.tar",
            "",
        ] {
            assert!(!is_volume(name) && !is_ours(&marker(name)), "{name}");
        }
    }

    #[test]
    fn what_is_left_is_removed_and_nothing_else() {
        let remote = remote();
        assert!(matches!(look(&remote).unwrap(), Found::Nothing));
        let claim = gone();
        assert!(remote.create(CLAIM, claim.to_json()).unwrap());
        assert!(!remote.create(CLAIM, b"another".to_vec()).unwrap());
        let id = remote.begin("base.00002.tar", |_| {}).unwrap();
        for (name, content) in [
            ("base.00001.tar", &b"x"[..]),
            ("base.00002.tar.upload", id.as_bytes()),
            ("backup_manifest", b"x"),
            ("notes/mine", b"x"),
        ] {
            remote.put(name, content.to_vec()).unwrap();
        }
        let Found::Claimed(found, objects) = look(&remote).unwrap() else { panic!("nothing") };
        assert_eq!((found == claim, objects.len()), (true, 5));
        take_over(&remote, &found, &objects).unwrap();
        assert_eq!(names(&remote), ["notes/mine"]);
        // The upload is no more.
        assert!(remote.complete("base.00002.tar", &id, Vec::new(), 0).is_err());
        let error = look(&remote).unwrap_err();
        assert_eq!(error.message(), "\"s3://b/one/two\" exists but is not empty");
        let error = remove_all(&remote).unwrap_err();
        assert_eq!(error.message(), "\"s3://b/one/two/notes/mine\" is of no backup, and was left alone");
    }

    #[test]
    fn what_is_under_way_or_complete_is_left_alone() {
        let remote = remote();
        remote.put("base.00001.tar", b"x".to_vec()).unwrap();
        let own = Claim::new().unwrap();
        remote.put(CLAIM, own.to_json()).unwrap();
        let Found::Claimed(found, objects) = look(&remote).unwrap() else { panic!("nothing") };
        let error = take_over(&remote, &found, &objects).unwrap_err();
        assert_eq!(error.message(), "\"s3://b/one/two\" is in use by another backup");
        assert!(error.hint().unwrap().ends_with("--remove-leftovers -D s3://b/one/two"));
        assert_eq!(names(&remote).len(), 2);
        remote.put(INDEX, b"{}".to_vec()).unwrap();
        assert_eq!(look(&remote).unwrap_err().message(), "\"s3://b/one/two\" has a backup already");
        assert_eq!(remove_all(&remote).unwrap_err().message(), "\"s3://b/one/two\" has a complete backup");
        remote.delete(INDEX).unwrap();
        // Whoever asks for it knows that it is no more.
        remove_all(&remote).unwrap();
        assert!(names(&remote).is_empty());
    }
}
