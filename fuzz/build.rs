//! Generates the messages of the CM as the daemon's build script does.

use std::path::PathBuf;

use protobuf_codegen::{Codegen, Customize};

fn main() {
    let proto = PathBuf::from("../proto");
    println!("cargo:rerun-if-changed=../proto");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("cm_v4");
    std::fs::create_dir_all(&out).expect("OUT_DIR is writable");
    let files = ["common/v1/common.proto", "servicemanager/v4/servicemanager.proto"];
    Codegen::new()
        .pure()
        .include(&proto)
        .inputs(files.iter().map(|file| proto.join(file)))
        .out_dir(&out)
        .customize(Customize::default().lite_runtime(true).gen_mod_rs(true))
        .run_from_script();
}
