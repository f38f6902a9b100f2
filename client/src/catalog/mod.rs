//! What backups in volumes are, as their indexes say it: [`index`] is the form. docs/volumes.md describes it for who
//! writes another program.

pub mod index;
