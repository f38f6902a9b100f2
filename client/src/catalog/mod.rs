//! What backups in volumes are, as their indexes say it: [`index`] is the form. docs/volumes.md describes it for who
//! writes another program.

#[allow(dead_code, reason = "the output that writes it comes next")]
pub mod index;
