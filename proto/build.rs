//! Generates the messages of the peers and tells the linker how to make the daemon small.
//!
//! Messages come from the pure Rust generator (no `protoc`) for the lite runtime, so that one
//! formatted message cannot pull descriptors and reflection into the binary. Each adapter gets its
//! own copy of the shared messages of its generation: adapters do not import each other.

// A build script talks to cargo through its output, and asks rustc for its version.
#![allow(clippy::print_stdout, clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::{env, fs, process};

use protobuf_codegen::{Codegen, Customize};

/// Folder below `OUT_DIR`, and the files that become its modules.
const GENERATED: &[(&str, &[&str])] = &[
    ("cm_v4", &["common/v1/common.proto", "servicemanager/v4/servicemanager.proto"]),
    ("iam_v5", &["common/v1/common.proto", "iamanager/v5/iamanager.proto"]),
    ("iam_version", &["iamanager/version.proto"]),
];

fn main() {
    println!("cargo:rerun-if-changed=proto");
    let proto = Path::new("proto");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for (folder, files) in GENERATED {
        let dir = out.join(folder);
        fs::create_dir_all(&dir).expect("OUT_DIR is writable");
        Codegen::new()
            .pure()
            .include(proto)
            .inputs(files.iter().map(|file| proto.join(file)))
            .out_dir(&dir)
            .customize(Customize::default().lite_runtime(true).gen_mod_rs(true))
            .run_from_script();
    }
    link_daemon();
}

/// Arguments for the daemon's binary alone. They cannot stand in RUSTFLAGS: a change of those
/// would compile gRPC's C-core again.
fn link_daemon() {
    let arg = |text: &str| println!("cargo:rustc-link-arg-bin=aos_servicemanager={text}");
    arg("-Wl,-z,pack-relative-relocs");
    println!("cargo:rerun-if-changed=src/main.rs");
    // The binary defines what C-core then calls; without the definitions it could not be linked.
    if fs::read_to_string("src/main.rs").is_ok_and(|text| text.contains("one_cpu_for_grpc")) {
        arg("-Wl,--wrap=gpr_cpu_num_cores");
        arg("-Wl,--wrap=gpr_cpu_current_cpu");
    }
    if links_with_lld() {
        arg("-Wl,--icf=all");
    }
}

/// rustc links x86_64 Linux with its own lld since 1.90; other linkers reject lld's flags.
fn links_with_lld() -> bool {
    let release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let own_linker = env::var_os("RUSTC_LINKER").is_some() || flags.contains("link");
    let target = env::var("TARGET").unwrap_or_default();
    release && !own_linker && target == "x86_64-unknown-linux-gnu" && rustc_minor() >= 90
}

fn rustc_minor() -> u32 {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let Ok(output) = process::Command::new(rustc).arg("--version").output() else { return 0 };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split('.').nth(1).and_then(|minor| minor.parse().ok()).unwrap_or(0)
}
