//! Hostile packages that are made here, each in a store with the packages of others.
//!
//! Whatever comes in, the host, the service and the layer that are installed, and the next install
//! must not notice; and nothing is left of what was refused.

use std::os::unix::ffi::OsStrExt;

use super::fixture::{Archive, Image, digest_of, gzip, layer_package};
use super::given::{VICTIM, attributes, untouchables};
use super::raw::{Raw, dir, file, gnu_long, hard, pax, symlink, tar};
use super::*;
use crate::image::listing::{Node, scan};

/// Space of the store; no case may need more to be refused.
const TMP_BYTES: u64 = 96 << 20;

/// What must become of a package.
enum Expect {
    /// With a message that has this in it.
    Refused(&'static str),
    /// With exactly these entries besides the root, as `path`, `path -> target`, `path/`,
    /// `path/ (opaque)` or `path (whiteout)`.
    Installed(&'static [&'static str]),
}
use Expect::{Installed, Refused};

fn entries(tree: &Path) -> Vec<String> {
    let listing = scan(tree, GID, &|| false).unwrap().0;
    let shown = |(path, node): (Vec<u8>, Node)| {
        let path = names::shown(&path);
        match node {
            Node::Directory { mode, .. } | Node::File { mode, .. } if mode & 0o6000 != 0 => {
                panic!("{path} has set-id bits")
            }
            Node::Directory { opaque: true, .. } => format!("{path}/ (opaque)"),
            Node::Directory { .. } => format!("{path}/"),
            Node::File { .. } => path,
            Node::Symlink { target } => format!("{path} -> {}", names::shown(&target)),
            Node::Whiteout => format!("{path} (whiteout)"),
        }
    };
    listing.into_iter().filter(|(path, _)| !path.is_empty()).map(shown).collect()
}

/// No entry has attributes or times that the archive has chosen.
fn check_attributes(name: &str, tree: &Path) {
    let now = sys::time::wall_ms() / 1000;
    for (path, node) in scan(tree, GID, &|| false).unwrap().0 {
        let path = tree.join(std::ffi::OsStr::from_bytes(&path));
        let mtime = fs::symlink_metadata(&path).unwrap().mtime();
        assert!((0..=now).contains(&mtime), "{name}: {} has time {mtime}", path.display());
        let expect: &[&str] = match node {
            Node::Directory { opaque: true, .. } => &["trusted.overlay.opaque"],
            Node::Directory { .. } | Node::File { .. } => &[],
            Node::Symlink { .. } | Node::Whiteout => continue,
        };
        let found = attributes(&fs::File::open(&path).unwrap());
        assert_eq!(found, expect, "{name}: {}", path.display());
    }
}

/// A store in which others have their packages.
struct Town {
    store: Store,
    service: Row,
    layer: Row,
    good: Vec<u8>,
}

impl Town {
    fn new() -> Self {
        fs::create_dir(VICTIM).unwrap();
        sys::fs::write_plain(&Path::new(VICTIM).join("file"), b"precious", 0o640).unwrap();
        let store = Store::new(&private("store"));
        let good = Image::new(Archive::new().file("app", b"good").bytes()).package();
        let (service, _) = store.service(file_source(&private("good"), &good)).unwrap();
        let (layer, digest) = layer_package(&Archive::new().file("lib", b"lib").bytes());
        let layer = store.layer(&digest, file_source(&private("layer"), &layer)).unwrap();
        let next = Image::new(Archive::new().file("app", b"next").bytes()).package();
        Self {
            store,
            service: Row::Service(std::sync::Arc::new(service)),
            layer: Row::Layer(layer),
            good: next,
        }
    }

    fn check(&self, name: &str, package: &[u8], expect: &Expect) {
        let content = self.store.content();
        let before = untouchables();
        let source = file_source(&private("package"), package);
        match (self.store.service(source), expect) {
            (Ok((row, image)), Installed(expected)) => {
                assert_eq!(entries(&image.rootfs), *expected, "{name}");
                check_attributes(name, &image.rootfs);
                self.store.store.remove(&row.path).unwrap();
            }
            (Err(error), Refused(why)) => assert!(error.contains(why), "{name}: {error}"),
            (Ok((_, image)), Refused(_)) => panic!("{name}: {:?}", entries(&image.rootfs)),
            (Err(error), Installed(_)) => panic!("{name}: {error}"),
        }
        assert_eq!(untouchables(), before, "{name} touched the host");
        assert_eq!(self.store.content(), content, "{name} left something");
        for row in [&self.service, &self.layer] {
            self.store.store.verify(row, &|| false).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        let next = file_source(&private("next"), &self.good);
        let (next, _) = self.store.service(next).unwrap_or_else(|e| panic!("after {name}: {e}"));
        self.store.store.remove(&next.path).unwrap();
    }
}

/// Runs cases of root file systems.
fn check_trees(name: &'static str, cases: Vec<(&'static str, Vec<u8>, Expect)>) {
    let cases = cases.into_iter().map(|(name, tree, expect)| {
        // Outside of the thread, whose stack is small.
        (name, Image::new(tree).package(), expect)
    });
    check_packages(name, cases.collect());
}

fn check_packages(name: &'static str, cases: Vec<(&'static str, Vec<u8>, Expect)>) {
    in_private_tmp(name, TMP_BYTES, move || {
        let town = Town::new();
        for (name, package, expect) in &cases {
            town.check(name, package, expect);
        }
    });
}

#[test]
fn names_that_lead_elsewhere() {
    let outside = b"/tmp/aos-fixture-victim/escape";
    let escape = "/tmp/aos-fixture-victim/escape";
    let leaves = || Refused("leaves the target directory");
    let absolute = || Refused("the name is absolute");
    check_trees(
        "hostile-names",
        vec![
            ("absolute", tar(&[file(outside, b"x")]), absolute()),
            ("up", tar(&[file(b"a/../../x", b"x")]), leaves()),
            ("up at the end", tar(&[dir(b"a/b/.."), file(b"c", b"")]), leaves()),
            ("pax path up", tar(&[pax(&[("path", b"../x")]), file(b"innocent", b"x")]), leaves()),
            (
                "pax path absolute",
                tar(&[pax(&[("path", escape.as_bytes())]), file(b"innocent", b"x")]),
                absolute(),
            ),
            (
                "the last pax record counts",
                tar(&[pax(&[("path", b"good"), ("path", b"../x")]), file(b"innocent", b"x")]),
                leaves(),
            ),
            (
                "gnu long name up",
                tar(&[gnu_long(b'L', b"../../x\0"), file(b"innocent", b"x")]),
                leaves(),
            ),
            ("prefix up", tar(&[Raw::new(b"x", b'0', b"x").at(345, b"../..").bytes()]), leaves()),
            (
                "name with NUL from pax",
                tar(&[pax(&[("path", b"a\0/../../x")]), file(b"innocent", b"x")]),
                Refused("refused"),
            ),
            ("no name", tar(&[file(b"", b"x")]), Refused("refused")),
            ("only slashes", tar(&[dir(b"//")]), Refused("the name is absolute")),
            ("odd", tar(&[file(b"./a/.//b/./c", b"x")]), Refused("empty or `.` component")),
            ("dots in front", tar(&[file(b"./././a/b", b"x")]), Installed(&["a/", "a/b"])),
            ("a long name without a member", tar(&[gnu_long(b'L', b"x\0")]), Installed(&[])),
        ],
    );
}

#[test]
fn links_that_lead_elsewhere() {
    let victim = b"/tmp/aos-fixture-victim";
    let in_victim = b"/tmp/aos-fixture-victim/file";
    let below = || Refused("it lies below an entry that is no directory");
    let no_file = || Refused("hard link to no file of this archive");
    let absolute = || Refused("the name is absolute");
    check_trees(
        "hostile-links",
        vec![
            ("write through", tar(&[symlink(b"d", victim), file(b"d/file", b"x")]), below()),
            ("make through", tar(&[symlink(b"d", victim), dir(b"d/new")]), below()),
            ("link through", tar(&[symlink(b"d", victim), symlink(b"d/file", b"x")]), below()),
            ("mark through", tar(&[symlink(b"d", victim), file(b"d/.wh.file", b"")]), below()),
            (
                "opaque through",
                tar(&[symlink(b"d", victim), file(b"d/.wh..wh..opq", b"")]),
                below(),
            ),
            (
                "in a circle",
                tar(&[symlink(b"a", b"b"), symlink(b"b", b"a"), file(b"a/x", b"x")]),
                below(),
            ),
            ("to itself", tar(&[symlink(b"a", b"a"), file(b"a/x", b"x")]), below()),
            (
                "directory that was a link",
                tar(&[symlink(b"d", victim), dir(b"d"), file(b"d/file", b"x")]),
                Installed(&["d/", "d/file"]),
            ),
            (
                "directory becomes a link while it is in use",
                tar(&[dir(b"d"), file(b"d/a", b"x"), symlink(b"d", victim), file(b"d/file", b"x")]),
                Refused("it replaces a directory"),
            ),
            (
                "file that was a link",
                tar(&[symlink(b"f", in_victim), file(b"f", b"x")]),
                Installed(&["f"]),
            ),
            ("hard link out", tar(&[hard(b"h", in_victim)]), absolute()),
            ("hard link up", tar(&[hard(b"h", b"../../../file")]), Refused("leaves the target")),
            (
                "hard link by pax",
                tar(&[pax(&[("linkpath", in_victim)]), hard(b"h", b"f")]),
                absolute(),
            ),
            (
                "hard link by gnu long name",
                tar(&[gnu_long(b'K', b"../../etc/passwd\0"), hard(b"h", b"f")]),
                Refused("leaves the target"),
            ),
            ("hard link to a link", tar(&[symlink(b"l", in_victim), hard(b"h", b"l")]), no_file()),
            ("hard link to a directory", tar(&[dir(b"d"), hard(b"h", b"d")]), no_file()),
            (
                "hard link through a link",
                tar(&[symlink(b"d", victim), hard(b"h", b"d/file")]),
                no_file(),
            ),
            (
                "hard link to what is gone",
                tar(&[file(b"f", b"x"), symlink(b"f", in_victim), hard(b"h", b"f")]),
                no_file(),
            ),
            (
                "what is written over a hard link",
                tar(&[file(b"f", b"x"), hard(b"h", b"f"), file(b"h", b"other")]),
                Installed(&["f", "h"]),
            ),
            ("hard link before its file", tar(&[hard(b"h", b"f"), file(b"f", b"x")]), no_file()),
            (
                "target with NUL",
                tar(&[pax(&[("linkpath", b"a\0b")]), symlink(b"l", b"x")]),
                Refused("bad target"),
            ),
            (
                "a link is data",
                tar(&[symlink(b"l", b"../../../../etc/shadow")]),
                Installed(&["l -> ../../../../etc/shadow"]),
            ),
        ],
    );
}

#[test]
fn things_that_are_no_files() {
    let device = |kind, major: &[u8], minor: &[u8]| {
        Raw::new(b"dev", kind, b"").at(329, major).at(337, minor).bytes()
    };
    check_trees(
        "hostile-kinds",
        vec![
            ("null", tar(&[device(b'3', b"0000001", b"0000003")]), Refused("device nodes")),
            ("disk", tar(&[device(b'4', b"0000010", b"0000000")]), Refused("device nodes")),
            ("block 0:0", tar(&[device(b'4', b"0000000", b"0000000")]), Refused("device nodes")),
            ("whiteout device", tar(&[device(b'3', b"", b"")]), Installed(&["dev (whiteout)"])),
            ("fifo", tar(&[Raw::new(b"f", b'6', b"").bytes()]), Refused("FIFOs")),
            ("socket", tar(&[Raw::new(b"s", b's', b"").bytes()]), Refused("not supported")),
            ("multi-volume", tar(&[Raw::new(b"m", b'M', b"").bytes()]), Refused("not supported")),
            ("dump directory", tar(&[Raw::new(b"D", b'D', b"").bytes()]), Refused("not supported")),
            ("old sparse", tar(&[Raw::new(b"s", b'S', b"x").bytes()]), Refused("sparse")),
            (
                "pax sparse",
                tar(&[pax(&[("GNU.sparse.realsize", b"1099511627776")]), file(b"s", b"x")]),
                Refused("sparse"),
            ),
            (
                "set-id and odd modes",
                tar(&[
                    Raw::new(b"s", b'0', b"x").at(100, b"0006777").bytes(),
                    Raw::new(b"d", b'5', b"").at(100, b"0007777").bytes(),
                    Raw::new(b"n", b'0', b"x").at(100, b"0000000").bytes(),
                ]),
                Installed(&["d/", "n", "s"]),
            ),
            (
                "attributes",
                tar(&[
                    pax(&[
                        ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\xff\xff\xff\xff"),
                        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
                        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                        ("LIBARCHIVE.xattr.user.x", b"eA"),
                        ("SCHILY.acl.access", b"user::rwx"),
                    ]),
                    dir(b"d"),
                ]),
                Installed(&["d/"]),
            ),
            (
                "attributes of a file beside a mark",
                tar(&[
                    pax(&[
                        ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\xff\xff\xff\xff"),
                        ("SCHILY.xattr.trusted.overlay.metacopy", b""),
                    ]),
                    file(b"d/f", b"x"),
                    file(b"d/.wh..wh..opq", b""),
                ]),
                Installed(&["d/ (opaque)", "d/f"]),
            ),
            (
                "ages ago and far away",
                tar(&[
                    pax(&[("mtime", b"-99999999999999999999")]),
                    file(b"a", b""),
                    pax(&[("mtime", b"99999999999999999999.9")]),
                    file(b"b", b""),
                    Raw::new(b"c", b'0', b"")
                        .at(136, &[0x80, 0xff, 0xff, 0xff, 0xff, 0xff])
                        .bytes(),
                ]),
                Installed(&["a", "b", "c"]),
            ),
        ],
    );
}

#[test]
fn sizes_that_lie() {
    let sized = |field: &[u8]| Raw::new(b"f", b'0', b"").at(124, field).bytes();
    let huge_base256 = [0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0];
    let beyond = [0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let negative = [0xff; 12];
    let many = |count: usize| {
        let one = file(b"same", &[0; 4096]);
        let names = (0..count).map(|n| file(format!("{n}").as_bytes(), &one));
        tar(&names.collect::<Vec<_>>())
    };
    let bomb = |mib: usize| gzip(&tar(&[file(b"zeros", &vec![0; mib << 20])]));
    let nested = gzip(&gzip(&tar(&[file(b"f", b"x")])));
    let mut cases = vec![
        ("octal huge", tar(&[sized(b"77777777777")]), Refused("not enough space")),
        ("base-256 huge", tar(&[sized(&huge_base256)]), Refused("malformed tar header: size")),
        ("base-256 beyond", tar(&[sized(&beyond)]), Refused("malformed tar header: size")),
        ("negative", tar(&[sized(&negative)]), Refused("malformed tar header: size")),
        (
            "pax huge",
            tar(&[pax(&[("size", b"1099511627776")]), file(b"f", b"x")]),
            Refused("not enough space"),
        ),
        (
            "pax beyond",
            tar(&[pax(&[("size", b"18446744073709551616")]), file(b"f", b"x")]),
            Refused("PAX size"),
        ),
        (
            "pax shorter than the header",
            tar(&[pax(&[("size", b"0")]), file(b"f", b"content that is a header")]),
            Refused("malformed tar header"),
        ),
        ("cut off", file(b"f", &[0; 2000])[..1024].to_vec(), Refused("in the middle of a member")),
        ("one file too large", bomb(100), Refused("not enough space")),
        ("compressed twice", nested, Refused("malformed")),
        ("more than fits, in pieces", gzip(&many(20_000)), Refused("not enough space")),
    ];
    // Two streams of gzip are one stream; what follows the end of the archive is not looked at.
    let (front, back) = (file(b"a", b"x"), tar(&[file(b"b", b"x")]));
    let two = [gzip(&front), gzip(&back)].concat();
    cases.push(("gzip members in a row", two, Installed(&["a", "b"])));
    let behind = [gzip(&tar(&[file(b"a", b"x")])), gzip(&tar(&[file(b"../b", b"x")]))].concat();
    cases.push(("an archive behind the archive", behind, Installed(&["a"])));
    let garbage = [gzip(&tar(&[file(b"a", b"x")])), b"garbage".to_vec()].concat();
    cases.push(("garbage behind gzip", garbage, Refused("malformed")));
    let mut zeros = tar(&[file(b"a", b"x")]);
    zeros.resize(zeros.len() + (20 << 20), 0);
    cases.push(("endless padding", gzip(&zeros), Refused("after the end of the archive")));
    cases.push(("no end mark", file(b"a", b"x"), Installed(&["a"])));
    check_trees("hostile-sizes", cases);
}

#[test]
fn extended_headers_without_measure() {
    let long = vec![b'a'; 70_000];
    let near = vec![b'a'; 60_000];
    let component = vec![b'a'; 256];
    let deep = [b"d/".repeat(128), b"x".to_vec()].concat();
    let many: Vec<_> =
        (0..20).map(|_| pax(&[("comment", &near)])).chain([file(b"f", b"")]).collect();
    check_trees(
        "hostile-heads",
        vec![
            ("long pax", tar(&[pax(&[("path", &long)]), file(b"f", b"")]), Refused("is too large")),
            ("long gnu", tar(&[gnu_long(b'L', &long), file(b"f", b"")]), Refused("is too large")),
            ("many", tar(&many), Refused("is too large")),
            (
                "a long component",
                tar(&[pax(&[("path", &component)]), file(b"f", b"")]),
                Refused("refused"),
            ),
            (
                "too deep",
                tar(&[pax(&[("path", &deep)]), file(b"f", b"")]),
                Refused("nested too deeply"),
            ),
            (
                "no length",
                tar(&[Raw::new(b"p", b'x', b"path=x\n").bytes(), file(b"f", b"")]),
                Refused("PAX record"),
            ),
            (
                "length 0",
                tar(&[Raw::new(b"p", b'x', b"0 path=x\n").bytes(), file(b"f", b"")]),
                Refused("PAX record"),
            ),
            (
                "length beyond",
                tar(&[Raw::new(b"p", b'x', b"999 path=x\n").bytes(), file(b"f", b"")]),
                Refused("PAX record"),
            ),
            (
                "global headers are not believed",
                tar(&[Raw::new(b"g", b'g', b"13 path=../x\n").bytes(), file(b"f", b"x")]),
                Installed(&["f"]),
            ),
            (
                "bad mode",
                tar(&[Raw::new(b"f", b'0', b"").at(100, b"xyz").bytes()]),
                Refused("mode"),
            ),
            (
                "bad time",
                tar(&[Raw::new(b"f", b'0', b"").at(136, b"never").bytes()]),
                Refused("mtime"),
            ),
        ],
    );
}

#[test]
fn whiteouts_that_trick() {
    let marker = |name: &[u8]| file(name, b"");
    let nothing = || Refused("the whiteout marker names nothing");
    check_trees(
        "hostile-marks",
        vec![
            ("nothing", tar(&[marker(b".wh.")]), nothing()),
            ("here", tar(&[marker(b"d/.wh..")]), nothing()),
            ("above", tar(&[marker(b"d/.wh...")]), nothing()),
            (
                "above, from pax",
                tar(&[pax(&[("path", b".wh.../x")]), marker(b"f")]),
                Refused("refused"),
            ),
            ("a marker as directory", tar(&[dir(b".wh.d")]), Refused("must be a regular file")),
            (
                "a marker as link",
                tar(&[symlink(b".wh.l", b"/etc")]),
                Refused("must be a regular file"),
            ),
            (
                "a marker as hard link",
                tar(&[file(b"f", b"x"), hard(b".wh.l", b"f")]),
                Refused("must be a regular file"),
            ),
            ("below a marker", tar(&[marker(b".wh.d/x")]), Refused("refused")),
            ("reserved", tar(&[marker(b".wh..wh.plnk"), marker(b"f")]), Installed(&["f"])),
            (
                "what it hides is here",
                tar(&[marker(b".wh.f"), file(b"f", b"x"), dir(b"d"), marker(b".wh.d")]),
                Installed(&["d/", "f"]),
            ),
            (
                "hidden twice",
                tar(&[marker(b".wh.f"), marker(b".wh.f"), Raw::new(b"f", b'3', b"").bytes()]),
                Installed(&["f (whiteout)"]),
            ),
            (
                "a hard link to what is hidden",
                tar(&[marker(b".wh.f"), hard(b"h", b"f")]),
                Refused("hard link to no file"),
            ),
        ],
    );
}

#[test]
fn names_that_look_alike() {
    check_trees(
        "hostile-alike",
        vec![
            (
                "the last of two counts",
                tar(&[file(b"f", b"one"), dir(b"d"), file(b"f", b"two"), dir(b"d")]),
                Installed(&["d/", "f"]),
            ),
            (
                "a directory stays",
                tar(&[dir(b"d"), file(b"d", b"x")]),
                Refused("it replaces a directory"),
            ),
            (
                "cases and normal forms are different names",
                tar(&[
                    file(b"A", b""),
                    file(b"a", b""),
                    file("\u{e9}".as_bytes(), b""),
                    file("e\u{301}".as_bytes(), b""),
                ]),
                Installed(&["A", "a", "e\\xcc\\x81", "\\xc3\\xa9"]),
            ),
            ("new line", tar(&[file(b"a\nb", b"")]), Refused("new lines are not supported")),
            ("no text", tar(&[file(b"\xff\xfe", b"")]), Installed(&["\\xff\\xfe"])),
            ("control", tar(&[file(b"a\x1b[2J\r", b"")]), Installed(&["a\\x1b[2J\\r"])),
            (
                "what the store uses itself",
                tar(&[
                    file(b".package", b"{}"),
                    dir(b".staging-1"),
                    dir(b"blobs"),
                    file(b"manifest.json", b""),
                ]),
                Installed(&[".package", ".staging-1/", "blobs/", "manifest.json"]),
            ),
        ],
    );
}

#[test]
fn packages_that_trick() {
    let good = || Image::new(tar(&[file(b"f", b"x")]));
    let with = |member: Vec<u8>| [member, good().package()].concat();
    let image = good();
    let config = digest_of(image.image_config.as_bytes()).replace(':', "/");
    let blob = format!("blobs/{config}");
    let foreign = || Refused("does not belong into a package");
    let victim = b"/tmp/aos-fixture-victim";
    let mut nested = Image::new(tar(&[file(b"f", b"x")]));
    nested.service_config = format!("{}{}", r#"{"a":"#.repeat(70), "}".repeat(70));
    let mut text = good();
    text.image_config = "{\"os\": \"\\ud800\"}".to_owned();
    let mut unused = vec![dir(b"blobs"), dir(b"blobs/sha256")];
    let name = format!("blobs/sha256/{}", "0".repeat(64));
    unused.push(Raw::new(name.as_bytes(), b'0', b"").at(124, b"77777777777").bytes());
    check_packages(
        "hostile-packs",
        vec![
            ("the blobs are a link", with(symlink(b"blobs", victim)), foreign()),
            ("the algorithm is a link", with(symlink(b"blobs/sha256", victim)), foreign()),
            ("a blob is a link", with(symlink(blob.as_bytes(), b"/etc/passwd")), foreign()),
            ("a blob is a hard link", with(hard(blob.as_bytes(), b"/etc/passwd")), foreign()),
            ("the manifest is a link", with(symlink(b"manifest.json", b"/etc/passwd")), foreign()),
            ("the manifest is a directory", with(dir(b"manifest.json")), foreign()),
            (
                "the manifest is a device",
                with(Raw::new(b"manifest.json", b'3', b"").bytes()),
                foreign(),
            ),
            ("a blob comes twice", with(file(blob.as_bytes(), b"other")), Refused("hash missmach")),
            ("a foreign algorithm", with(dir(b"blobs/md5")), foreign()),
            (
                "a blob in capitals",
                with(file(&[b"blobs/sha256/", &[b'A'; 64][..]].concat(), b"")),
                foreign(),
            ),
            ("a blob too deep", with(file(b"blobs/sha256/x/y", b"")), Refused("refused")),
            ("what we use ourselves", with(dir(b"rootfs")), foreign()),
            ("what the reference uses itself", with(dir(b"tmprootfs")), foreign()),
            ("our stamp", with(file(b".package", b"{}")), foreign()),
            (
                "an unused blob without end",
                [unused.concat(), good().package()].concat(),
                Refused("not enough space"),
            ),
            ("nested too deeply", nested.package(), Refused("invalid Aos service config")),
            ("no text", text.package(), Refused("invalid image config")),
            ("not an archive", vec![0x5a; 4096], Refused("malformed")),
            ("empty", Vec::new(), Refused("")),
            ("only an end mark", tar(&[]), Refused("manifest.json is missing")),
            ("as it should be", good().package(), Installed(&["f"])),
        ],
    );
}

/// The file is opened once: what lies at its path later is of no interest.
#[test]
fn a_package_that_is_swapped_while_it_is_read() {
    let dir = scratch();
    let store = Store::new(dir.path());
    let content = Image::new(tar(&[file(b"f", &[7; 300_000])])).package();
    let path = dir.path().join("package");
    let source = file_source(&path, &content);
    let swapped = std::cell::Cell::new(false);
    let swap = || {
        if !swapped.replace(true) {
            fs::rename(&path, dir.path().join("moved")).unwrap();
            sys::fs::write_plain(&path, b"something else", 0o600).unwrap();
        }
        false
    };
    let plan = InstallPlan {
        package: service_package(source),
        evictable: Vec::new(),
        used_bytes: 0,
        unfinished: Vec::new(),
    };
    let installed = store.store.install(&plan, &mut Vec::new(), &swap).unwrap();
    assert!(swapped.get());
    let crate::model::job::Installed::Service(row, _) = installed else { panic!("a layer") };
    assert_eq!(row.package_digest, Sha3_256::digest(&content).to_vec());
    // Written to while it is read: what was unpacked is not what was announced.
    let source = file_source(&path, &content);
    let mut after = 2;
    let counter = std::cell::RefCell::new(&mut after);
    let alter = || {
        let mut left = counter.borrow_mut();
        **left -= 1;
        if **left == 0 {
            use std::os::unix::fs::FileExt;
            let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&[8; 1000], content.len() as u64 - 10_000).unwrap();
        }
        false
    };
    store.store.remove(&row.path).unwrap();
    let plan = InstallPlan { package: service_package(source), ..plan };
    let failure = store.store.install(&plan, &mut Vec::new(), &alter).unwrap_err();
    assert!(
        failure.message.contains("mismatch") || failure.message.contains("missmach"),
        "{failure}"
    );
    assert!(store.content().is_empty());
}
