# Shared by the scripts in ci/; sourced, never run.
# Sets up the build: one target directory and one compiler cache outside the checkout, because the
# C-core of gRPC takes about ten minutes to compile.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cache="${XDG_CACHE_HOME:-$HOME/.cache}/aos_servicemanager"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$cache/target}"
export CCACHE_DIR="${CCACHE_DIR:-$cache/ccache}"
export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-never}"

build_packages="build-essential cmake ccache pkg-config libssl-dev"
run_packages="crun runc busybox-static iproute2 nftables procps strace openssl systemd softhsm2 opensc libengine-pkcs11-openssl"
# Makes the disk with quota of some tests.
disk_packages="e2fsprogs mount"
uml_packages="user-mode-linux kmod $disk_packages"

step() { printf '\n== %s\n' "$*"; }

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

need_root() {
  [ "$(id -u)" = 0 ] || die "$0 starts containers and needs root"
}

# Installs those of the named Debian packages that are missing.
need_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  step "install packages: ${missing[*]}"
  [ "$(id -u)" = 0 ] || die "packages are missing (${missing[*]}); install them or run as root"
  command -v apt-get >/dev/null || die "packages are missing and this is no Debian: ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Everything that a build needs; the Rust toolchain is expected.
need_build() {
  # shellcheck disable=SC2086 # a list of words
  need_packages $build_packages
  command -v cargo >/dev/null || PATH="$HOME/.cargo/bin:$PATH"
  command -v cargo >/dev/null || die "no cargo: install Rust 1.89 or newer with rustup"
  mkdir -p "$CARGO_TARGET_DIR" "$CCACHE_DIR"
  export CMAKE_C_COMPILER_LAUNCHER=ccache CMAKE_CXX_COMPILER_LAUNCHER=ccache
  if ! ls "$CARGO_TARGET_DIR"/*/build/grpcio-sys-*/out >/dev/null 2>&1; then
    echo "the first build compiles the C-core of gRPC: about 12 minutes on two cores"
  fi
}

need_run() {
  # shellcheck disable=SC2086 # a list of words
  need_packages $run_packages
}

# What builds for arm64 need beside it.
need_cross() {
  dpkg --print-foreign-architectures | grep -qx arm64 || {
    [ "$(id -u)" = 0 ] || die "no arm64 libraries: run as root, or 'dpkg --add-architecture arm64'"
    dpkg --add-architecture arm64
    apt-get update -qq
  }
  need_packages g++-aarch64-linux-gnu binutils-aarch64-linux-gnu libssl-dev:arm64 libstdc++6:arm64 \
    qemu-user-static file
  rustup target list --installed | grep -qx aarch64-unknown-linux-gnu ||
    rustup target add aarch64-unknown-linux-gnu
}

# check_libraries NAMES: fails for a shared library that an ECU need not have.
check_libraries() {
  local allowed='^(ld-linux.*|libc|libcrypto|libgcc_s|libm|libssl|libstdc\+\+|linux-vdso)$'
  local names
  names=$(echo "$1" | sed 's:.*/::; s/\.so.*//' | sort)
  echo "shared libraries: $(echo "$names" | tr '\n' ' ')"
  if echo "$names" | grep -vE "$allowed"; then
    die "these libraries are not on the list"
  fi
}

# check_database BINARY: fails when SQLite has parts that the flags in .cargo/config.toml leave out.
check_database() {
  if LC_ALL=C grep -aq 'fts5: ' "$1"; then
    die "SQLite was compiled without the flags of .cargo/config.toml"
  fi
}

# Seconds after which user-mode Linux is given up.
uml_limit=${SM_UML_LIMIT:-900}

# boot_uml RESULTS GROUPS [INIT]: user-mode Linux with `ci/uml-init`, which explains these; its
# console is the output.
boot_uml() {
  timeout -k 10 "$uml_limit" linux.uml mem=1536M rootfstype=hostfs rootflags=/ ro quiet \
    con=null con0=fd:0,fd:1 ssl=null "init=$PWD/ci/uml-init" "aos_results=$1" "aos_groups=$2" \
    ${3:+"aos_init=$3"} </dev/null 2>&1 | sed -u 's/\r$//'
}

# Where a run of the tests on one platform (`here`, `uml`) keeps its whole output.
skip_log() { printf '%s/test-logs/%s.log' "$CARGO_TARGET_DIR" "$1"; }

# Output of tests without what those printed that passed.
without_successes() {
  awk '/^successes:$/ { quiet = 1 } /^(failures:|test result:)/ { quiet = 0 } !quiet { print; fflush() }'
}

# Tests in an output that say that they were skipped, wholly or in part: name, tab, what was skipped.
# Without a name behind SKIP it is about data that a checkout need not have beside it.
skipped() {
  awk '/^---- .* stdout ----$/ { test = $2 }
    /^SKIP [^:]/ && test { sub(/^SKIP */, ""); sub(/: .*/, ""); print test "\t" $0 }
    /^(successes|failures):$|^test result:/ { test = "" }' "$1" | sort -u
}

# Names of the tests in an output that passed.
passed() { sed -n 's/^test \(.*\) \.\.\. ok$/\1/p' "$1" | sort -u; }

# A test that is skipped here has to run under user-mode Linux: fails for those that do not.
check_skips() {
  local test part all=
  while IFS=$'\t' read -r test part; do
    # Not -q: whoever writes into a pipe that was closed early has failed.
    if ! passed "$(skip_log uml)" | grep -xF "$test" >/dev/null ||
      skipped "$(skip_log uml)" | grep -xF "$test"$'\t'"$part" >/dev/null; then
      printf 'skipped on every platform: %s (%s)\n' "$test" "$part"
      all=1
    else
      printf 'skipped here, run under user-mode Linux: %s\n' "$test"
    fi
  done < <(skipped "$(skip_log here)")
  [ -z "$all" ] || die "some tests have run nowhere"
}
