//! The extension's SQL for `cargo pgrx`, which writes the install script from what is declared
//! here. What pgrx makes of the functions themselves would be no procedures, and anybody could
//! call them: they are all marked `sql = false`.
//!
//! To the library these are a few kilobytes in a section of their own, which nothing reads when it
//! runs. Plain cargo and `make install` copy the files of sql/ instead.

pgrx::extension_sql_file!("../../sql/pg_parallel_backup--0.3.0.sql", name = "version_0_3_0", bootstrap);

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// The install script is the one above, and every function is marked.
    #[test]
    fn nothing_is_forgotten() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let declared = include_str!("schema.rs");
        // Others lead from one version to the next: two versions in the name.
        let install = root.join("sql").read_dir().unwrap().map(|entry| entry.unwrap().file_name());
        for name in install.map(|name| name.into_string().unwrap()) {
            let is_declared = declared.contains(&format!("\"../../sql/{name}\""));
            assert_eq!(is_declared, name.matches("--").count() == 1, "{name}");
        }
        for source in [include_str!("sql.rs"), include_str!("procedures.rs")] {
            assert!(source.contains("#[pg_extern(sql = false)]"));
            assert!(!source.lines().any(|line| line.trim() == "#[pg_extern]"));
        }
    }

    /// The SQL, the library, the client and the packages (tools/deb.sh) have one version: that of
    /// Cargo.toml.
    #[test]
    fn one_version() {
        let version = env!("CARGO_PKG_VERSION");
        let control = include_str!("../../pg_parallel_backup.control");
        assert!(
            control.lines().any(|line| line == format!("default_version = '{version}'")),
            "default_version of pg_parallel_backup.control is not {version}, the version in Cargo.toml"
        );
        let changelog = include_str!("../../CHANGELOG.md");
        let latest = changelog.lines().find(|line| line.starts_with("## ["));
        assert!(
            latest.is_some_and(|line| line.starts_with(&format!("## [{version}]"))),
            "CHANGELOG.md begins with {latest:?}, the version in Cargo.toml is {version}"
        );
        // CREATE EXTENSION and ALTER EXTENSION UPDATE get there.
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql").read_dir().unwrap();
        assert!(
            scripts
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .any(|name| name.ends_with(&format!("--{version}.sql"))),
            "no script in sql/ leads to version {version}"
        );
    }
}
