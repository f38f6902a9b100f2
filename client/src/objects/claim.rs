//! The object that claims a prefix for one backup: who holds it, and whether that process is no more.

use std::fs;

use protocol::BackupId;
use serde::{Deserialize, Serialize};

use super::remote::Remote;
use crate::error::{Error, Result};
use crate::report;

/// The object. It is the first that is written, and the last that goes.
pub const CLAIM: &str = "backup_claim.json";

/// What it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Of this run and no other.
    pub run: String,
    /// Who made it, for people.
    pub program: String,
    /// Where,
    pub host: String,
    /// as which process,
    pub process: u32,
    /// and when.
    pub began: String,
    /// What tells the process from others that had, or have, its number.
    pub identity: Option<Identity>,
}

/// A process of Linux.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Of the running kernel: one for each start of a machine.
    pub boot: String,
    /// In which namespace numbers of processes are.
    pub namespace: String,
    /// When the process began, in the kernel's clock ticks.
    pub began: u64,
}

impl Claim {
    /// Of this process.
    pub fn new() -> Result<Self> {
        let mut run = [0; 16];
        let failed = |error| Error::local(format!("could not get random bytes: {error}"));
        let read = std::io::Read::read_exact(&mut fs::File::open("/dev/urandom").map_err(failed)?, &mut run);
        read.map_err(failed)?;
        let process = std::process::id();
        Ok(Self {
            run: BackupId::from_bytes(run).to_string(),
            program: format!("{} {}", report::PROGRAM, env!("CARGO_PKG_VERSION")),
            host: crate::output::claim::host(),
            process,
            began: report::json::now(),
            identity: Identity::of(process),
        })
    }

    /// The one that is there.
    pub fn of(remote: &Remote) -> Result<Option<Self>> {
        let Some(bytes) = remote.get(CLAIM)? else { return Ok(None) };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|_| Error::local(format!("\"{}\" is not what this program writes", remote.shown(CLAIM))))
    }

    /// As it is written.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).unwrap_or_default()
    }

    /// Whether its process is known to be no more. Of other hosts, and of containers, nobody here can know.
    pub fn is_over(&self) -> bool {
        let (Some(then), Some(here)) = (&self.identity, Identity::of(std::process::id())) else {
            return false;
        };
        then.boot == here.boot
            && then.namespace == here.namespace
            && Identity::of(self.process).is_none_or(|now| now.began != then.began)
    }

    /// Why the prefix cannot be had.
    pub fn refusal(&self, remote: &Remote) -> Error {
        let location = remote.location();
        Error::local(format!("\"{location}\" is in use by another backup"))
            .with_detail(format!(
                "The claim on it is the object \"{}\", made by process {} on host \"{}\" at {}.",
                remote.shown(CLAIM),
                self.process,
                self.host,
                self.began
            ))
            .with_hint(format!(
                "If that backup is no more, remove what it has left: {} --remove-leftovers -D {location}",
                report::program()
            ))
    }
}

impl Identity {
    /// None if there is no such process, or no such system.
    fn of(process: u32) -> Option<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let namespace = fs::read_link("/proc/self/ns/pid").ok()?;
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // The name, in parentheses, may have anything in it.
        let behind = &stat[stat.rfind(')')? + 1..];
        Some(Self {
            boot: boot.trim().to_owned(),
            namespace: namespace.display().to_string(),
            began: behind.split_whitespace().nth(19)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_no_more() {
        let own = Claim::new().unwrap();
        assert!(own.identity.is_some() && !own.is_over());
        assert_ne!(own.run, Claim::new().unwrap().run);
        let changed = |change: fn(&mut Identity)| {
            let mut claim = own.clone();
            change(claim.identity.as_mut().unwrap());
            claim.is_over()
        };
        // The number is another's by now.
        assert!(changed(|identity| identity.began -= 1));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let gone = Claim { process: child.id(), ..own.clone() };
        child.wait().unwrap();
        assert!(gone.is_over());
        // Elsewhere.
        assert!(!changed(|identity| identity.boot.push('x')));
        assert!(!changed(|identity| {
            identity.namespace.push('x');
            identity.began = 0;
        }));
        assert!(!Claim { identity: None, process: gone.process, ..own.clone() }.is_over());
        assert_eq!(serde_json::from_slice::<Claim>(&own.to_json()).unwrap(), own);
    }
}
