# A recipe to start from, for a layer on Yocto 5.0 (scarthgap) or newer. No image was built with it
# here: bitbake's parser reads it, and its tasks were run by hand. What it relies on is said beside
# each part.
SUMMARY = "Node agent of an AosEdge unit"
DESCRIPTION = "Keeps the services of a unit installed, runs them as OCI containers with crun or \
runc, wires their network, supervises them and reports."
HOMEPAGE = "https://docs.aosedge.tech"
SECTION = "admin"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

# Yours: where the sources are. "bitbake -c update_crates aos-servicemanager" writes the list of
# crates from Cargo.lock, so that at first this file has to be there empty.
SRC_URI = "git://REPOSITORY;protocol=https;branch=main"
SRCREV = "COMMIT"
require ${BPN}-crates.inc

# The C-core of gRPC is built by CMake.
DEPENDS += "cmake-native openssl"

# From Yocto 5.2 on this line is not needed.
S = "${WORKDIR}/git"

inherit bash-completion cargo cargo-update-recipe-crates pkgconfig systemd update-rc.d

SYSTEMD_SERVICE:${PN} = "aos-servicemanager.service aos-servicemanager-instances.service"
INITSCRIPT_NAME = "aos-servicemanager"
INITSCRIPT_PARAMS = "defaults 90 10"

# Without this file the C-core would bring xDS, exceptions and, where it is in the sysroot, libsystemd.
export CMAKE_TOOLCHAIN_FILE = "${B}/aos.cmake"

do_configure:append() {
    printf '%s\n' >${B}/aos.cmake \
        'set(CMAKE_SYSTEM_NAME Linux)' \
        'set(CMAKE_SYSTEM_PROCESSOR ${TARGET_ARCH})' \
        'set(CMAKE_SYSROOT ${STAGING_DIR_TARGET})' \
        'set(CMAKE_C_COMPILER ${TARGET_PREFIX}gcc)' \
        'set(CMAKE_CXX_COMPILER ${TARGET_PREFIX}g++)' \
        'set(CMAKE_C_FLAGS_INIT "${HOST_CC_ARCH} ${TOOLCHAIN_OPTIONS}")' \
        'set(CMAKE_CXX_FLAGS_INIT "${HOST_CC_ARCH} ${TOOLCHAIN_OPTIONS}")' \
        'set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)' \
        'include(${S}/cross/cmake/common.cmake)'
    # grpcio-sys has ready bindings for x86_64 and aarch64, but knows them by Rust's own triples only.
    sed -i 's/| "aarch64-unknown-linux-gnu"/& | "${RUST_HOST_SYS}"/' \
        ${CARGO_VENDORING_DIRECTORY}/grpcio-sys-*/build.rs
}
# LIBSQLITE3_FLAGS and the rest of [env] come from .cargo/config.toml in the sources.

# The same files as in the package of ci/package.
do_install:append() {
    from=${S}/ci/packaging
    install -D -m 0600 $from/aos_servicemanager.cfg ${D}${sysconfdir}/aos/aos_servicemanager.cfg
    if ${@bb.utils.contains('DISTRO_FEATURES', 'systemd', 'true', 'false', d)}; then
        install -d ${D}${systemd_system_unitdir}
        install -m 0644 $from/aos-servicemanager*.service ${D}${systemd_system_unitdir}
    else
        # For OpenRC: aos-servicemanager.openrc in its place.
        install -D -m 0755 $from/aos-servicemanager.init ${D}${sysconfdir}/init.d/aos-servicemanager
    fi
    install -d ${D}${mandir}/man5 ${D}${mandir}/man8 ${D}${datadir}/bash-completion/completions
    awk -f $from/describe -v as=man -v version=${PV} ${S}/src/usage.txt \
        >${D}${mandir}/man8/aos_servicemanager.8
    awk -f $from/describe -v as=config -v version=${PV} ${S}/README.md \
        >${D}${mandir}/man5/aos_servicemanager.cfg.5
    awk -f $from/describe -v as=bash ${S}/src/usage.txt \
        >${D}${datadir}/bash-completion/completions/aos_servicemanager
}

CONFFILES:${PN} = "${sysconfdir}/aos/aos_servicemanager.cfg"

RDEPENDS:${PN} = "crun"
# What the kernel of the unit needs as modules, where they are not built in: README.md, "Network".
RRECOMMENDS:${PN} = "\
    kernel-module-8021q \
    kernel-module-bridge \
    kernel-module-nf-conntrack \
    kernel-module-nf-tables \
    kernel-module-nft-chain-nat \
    kernel-module-nft-ct \
    kernel-module-nft-limit \
    kernel-module-nft-masq \
    kernel-module-nft-quota \
    kernel-module-overlay \
    kernel-module-sch-tbf \
    kernel-module-veth \
"
