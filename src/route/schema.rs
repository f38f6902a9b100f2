//! The extension's SQL for `cargo pgrx`, which writes the install script from what is declared
//! here. What pgrx makes of the functions themselves would be no procedures, and anybody could
//! call them: they are all marked `sql = false`.
//!
//! To the library these are a few kilobytes in a section of their own, which nothing reads when it
//! runs. Plain cargo and `make install` copy the files of sql/ instead.

pgrx::extension_sql_file!("../../sql/pg_parallel_backup--0.1.0.sql", name = "version_0_1_0", bootstrap);
pgrx::extension_sql_file!(
    "../../sql/pg_parallel_backup--0.1.0--0.2.0.sql",
    name = "version_0_2_0",
    requires = ["version_0_1_0"]
);

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Every script of sql/ has its place above, and every function is marked.
    #[test]
    fn nothing_is_forgotten() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let declared = include_str!("schema.rs");
        for entry in root.join("sql").read_dir().unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(declared.contains(&format!("\"../../sql/{name}\"")), "{name}");
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
