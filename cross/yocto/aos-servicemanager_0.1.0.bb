# A recipe to start from, for a layer on Yocto 5.0 (scarthgap) or newer. It has not been built here;
# what it relies on is said beside each part.
SUMMARY = "Node agent of an AosEdge unit"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

# Yours: where the sources are. "bitbake -c update_crates aos-servicemanager" writes the list of
# crates from Cargo.lock.
SRC_URI = "git://REPOSITORY;protocol=https;branch=main"
SRCREV = "COMMIT"
S = "${WORKDIR}/git"
require ${BPN}-crates.inc

inherit cargo cargo-update-recipe-crates pkgconfig systemd update-rc.d

# The C-core of gRPC is built by CMake.
DEPENDS = "openssl cmake-native"

# Without this file the C-core would bring xDS, exceptions and, where it is in the sysroot, libsystemd.
export CMAKE_TOOLCHAIN_FILE = "${B}/aos.cmake"
do_configure:append() {
    cat >${B}/aos.cmake <<CMAKE
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR ${TARGET_ARCH})
set(CMAKE_SYSROOT ${STAGING_DIR_TARGET})
set(CMAKE_C_COMPILER ${TARGET_PREFIX}gcc)
set(CMAKE_CXX_COMPILER ${TARGET_PREFIX}g++)
set(CMAKE_C_FLAGS_INIT "${HOST_CC_ARCH} ${TOOLCHAIN_OPTIONS}")
set(CMAKE_CXX_FLAGS_INIT "${HOST_CC_ARCH} ${TOOLCHAIN_OPTIONS}")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
include(${S}/cross/cmake/common.cmake)
CMAKE
}
# grpcio-sys has ready bindings for x86_64 and aarch64, but knows them by Rust's own triples only.
do_configure:append() {
    sed -i 's/| "aarch64-unknown-linux-gnu"/& | "${RUST_HOST_SYS}"/' \
        ${CARGO_VENDORING_DIRECTORY}/grpcio-sys-*/build.rs
}
# LIBSQLITE3_FLAGS and the rest of [env] come from .cargo/config.toml in the sources.

do_install:append() {
    from=${S}/ci/packaging
    install -D -m 0600 $from/aos_servicemanager.cfg ${D}${sysconfdir}/aos/aos_servicemanager.cfg
    if ${@bb.utils.contains('DISTRO_FEATURES', 'systemd', 'true', 'false', d)}; then
        install -d ${D}${systemd_system_unitdir}
        install -m 0644 $from/aos-servicemanager*.service ${D}${systemd_system_unitdir}
    else
        install -D -m 0755 $from/aos-servicemanager.init ${D}${sysconfdir}/init.d/aos-servicemanager
    fi
}

SYSTEMD_SERVICE:${PN} = "aos-servicemanager.service aos-servicemanager-instances.service"
INITSCRIPT_NAME = "aos-servicemanager"
INITSCRIPT_PARAMS = "defaults 90 10"
CONFFILES:${PN} = "${sysconfdir}/aos/aos_servicemanager.cfg"

RDEPENDS:${PN} = "crun"
# What the kernel of the unit needs: README.md, "Network" and "Disk".
RRECOMMENDS:${PN} = "kernel-module-overlay kernel-module-veth kernel-module-bridge kernel-module-8021q \
    kernel-module-nf-tables kernel-module-sch-tbf kernel-module-ifb"
