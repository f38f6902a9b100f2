//! Compiles src/pg/shim.c with the header files of the server that the library is built for: the one that
//! pgrx takes its bindings from, found by the same function.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/pg/shim.c");
    for variable in ["PGRX_PG_CONFIG_PATH", "PGRX_PG_CONFIG_AS_ENV"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let (_, server) =
        pgrx_bindgen::detect_pg_config().expect("pg_config of the server").pop().expect("a server");
    let headers = server.includedir_server().expect("pg_config --includedir-server");
    println!("cargo:rerun-if-changed={}", headers.join("pg_config.h").display());
    let mut shim = cc::Build::new();
    // What nobody calls is left out by the linker, and what it refers to with it: so the unit tests, which
    // call none of it, link without a server.
    shim.file("src/pg/shim.c").std("gnu11").flag("-ffunction-sections").flag("-fdata-sections");
    shim.flag("-isystem").flag(headers).define("_GNU_SOURCE", None);
    if std::env::var_os("CARGO_FEATURE_VALGRIND").is_some() {
        shim.define("PPB_VALGRIND", None);
    }
    // C takes a pointer to another type, or an integer, with a warning.
    for mistake in ["int-conversion", "incompatible-pointer-types", "implicit-function-declaration"] {
        shim.flag(format!("-Werror={mistake}"));
    }
    shim.compile("pg_parallel_backup_shim");
}
