//! Points the linker at libpq and the program at the libpq that is installed beside it.
//!
//! Environment variables, all optional:
//! - `PQ_LIB_DIR`: the directory that holds libpq (read by pq-sys);
//! - `PG_CONFIG`: the pg_config program whose `--libdir` holds libpq (read here); without either,
//!   pq-sys asks the `pg_config` on PATH, and failing that the linker looks where it always does;
//! - `PPB_RUN_PATH`: the program's run path, none if it is empty (Debian's packages want none).
//!
//! By default the program is linked with the run path `$ORIGIN/../lib`: installed as
//! `bin/pg_parallel_basebackup` of a PostgreSQL tree it loads that tree's libpq, anywhere else the
//! system's.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=PG_CONFIG");
    println!("cargo:rerun-if-changed=build.rs");
    if let Some(pg_config) = std::env::var_os("PG_CONFIG").filter(|value| !value.is_empty()) {
        match Command::new(&pg_config).arg("--libdir").output() {
            Ok(output) if output.status.success() => {
                let directory = String::from_utf8_lossy(&output.stdout);
                println!("cargo:rustc-link-search=native={}", directory.trim());
            }
            _ => println!(
                "cargo:warning=PG_CONFIG={} cannot be run: libpq is looked for elsewhere",
                pg_config.display()
            ),
        }
    }
    println!("cargo:rerun-if-env-changed=PPB_RUN_PATH");
    let run_path = std::env::var("PPB_RUN_PATH").unwrap_or_else(|_| "$ORIGIN/../lib".to_owned());
    if !run_path.is_empty() {
        println!("cargo:rustc-link-arg-bins=-Wl,-rpath,{run_path}");
    }
}
