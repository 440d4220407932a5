//! The packages of the shared test data, good and hostile, each against its expected outcome.

use sha2::Digest as _;

use std::os::fd::IntoRawFd;

use expect_test::expect_file;

use super::*;
use crate::document::Object;
use crate::image::listing::Node;

pub(super) const VICTIM: &str = "/tmp/aos-fixture-victim";
/// Enough for every good package, far too little for the bomb.
const TMP_BYTES: u64 = 80 << 20;

/// The folder of the packages, or nothing where the data is not checked out.
fn data() -> Option<PathBuf> {
    folder("images")
}

fn folder(name: &str) -> Option<PathBuf> {
    let root = match std::env::var_os("SM_TEST_DATA") {
        Some(root) => PathBuf::from(root),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"),
    };
    let folder = root.join(name);
    if folder.is_dir() {
        // By descriptor: a private `/tmp` may cover the path.
        let open = fs::File::open(&folder).unwrap();
        return Some(format!("/proc/self/fd/{}", open.into_raw_fd()).into());
    }
    println!("SKIP: no test data in {} (set SM_TEST_DATA)", folder.display());
    None
}

fn bytes(hex: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(byte).collect()
}

/// A package with what its message says.
struct Given {
    content: Vec<u8>,
    source: PackageSource,
    layer_digest: Option<String>,
}

fn given(content: Vec<u8>, announced: &Object<'_>) -> Given {
    let text = |key: &str| announced.str(key).unwrap().unwrap_or_default().to_owned();
    Given {
        content,
        source: PackageSource {
            url: String::new(),
            sha3_256: bytes(&text("sha256")),
            sha3_512: bytes(&text("sha512")),
            size_bytes: announced.opt_u64("size").unwrap().unwrap(),
        },
        layer_digest: announced.has("digest").then(|| text("digest")),
    }
}

/// What an attempt left in the store.
enum Outcome {
    Service(Box<InstalledService>, Box<ServiceImage>),
    Layer(Box<InstalledLayer>),
}

impl Outcome {
    fn tree(&self) -> &Path {
        match self {
            Self::Service(_, image) => &image.rootfs,
            Self::Layer(row) => &row.path,
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Service(row, _) => &row.path,
            Self::Layer(row) => &row.path,
        }
    }

    fn gid(&self) -> u32 {
        match self {
            Self::Service(..) => GID,
            Self::Layer(_) => 0,
        }
    }
}

fn attempt(store: &Store, given: &Given) -> Result<Outcome, String> {
    let file = Path::new("/tmp/package");
    sys::fs::write_plain(file, &given.content, 0o600).unwrap();
    let source = PackageSource { url: "file:/tmp/package".to_owned(), ..given.source.clone() };
    let outcome = match &given.layer_digest {
        Some(digest) => Outcome::Layer(Box::new(store.layer(digest, source)?)),
        None => {
            let (row, image) = store.service(source)?;
            Outcome::Service(Box::new(row), Box::new(image))
        }
    };
    Ok(outcome)
}

/// Owner, mode, links, size and times of files that no package may touch.
pub(super) fn untouchables() -> Vec<String> {
    let paths = ["/etc/passwd", "/etc/shadow", "/etc/hostname", VICTIM];
    let victim = names(Path::new(VICTIM)).into_iter().map(|name| format!("{VICTIM}/{name}"));
    let all = paths.iter().map(|path| (*path).to_owned()).chain(victim);
    let describe = |path: String| match fs::symlink_metadata(&path) {
        Err(error) => format!("{path} {error}"),
        Ok(stat) => format!(
            "{path} {:o} {}:{} links {} size {} time {}.{}",
            stat.mode(),
            stat.uid(),
            stat.gid(),
            stat.nlink(),
            stat.size(),
            stat.ctime(),
            stat.ctime_nsec()
        ),
    };
    all.map(describe).collect()
}

/// What must hold for every installed tree, whatever the package was.
fn check_tree(store: &Store, outcome: &Outcome) {
    let listing = listing::scan(outcome.tree(), outcome.gid(), &|| false).unwrap();
    for node in listing.0.values() {
        if let Node::File { mode, .. } | Node::Directory { mode, .. } = node {
            assert_eq!(mode & 0o6000, 0, "set-user-id or set-group-id");
        }
    }
    if let Outcome::Service(row, image) = outcome {
        assert_eq!(listing.digest(GID), row.tree_digest, "taken while unpacking and read back");
        assert_eq!(&store.store.load(row).unwrap(), &**image);
        store.store.verify_service(row, &|| false).unwrap();
        let mode = fs::metadata(&row.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
    }
}

/// One line for each package: what became of it.
#[test]
fn hostile_packages() {
    let Some(data) = data() else { return };
    let report = in_private_tmp("hostile", TMP_BYTES, move || {
        fs::create_dir(VICTIM).unwrap();
        sys::fs::write_plain(&Path::new(VICTIM).join("file"), b"precious", 0o640).unwrap();
        let dir = scratch();
        let store = Store::new(dir.path());
        let good = load_good(&data, "good/service.tar.gz");
        let index = fs::read_to_string(data.join("index.json")).unwrap();
        let index = Object::parse(&format!("{{\"all\": {index}}}")).unwrap();
        let mut report = String::new();
        for case in index.objects("all").unwrap().unwrap() {
            let text = |key: &str| case.str(key).unwrap().unwrap();
            let (name, expect) = (text("name"), text("expect"));
            let content = fs::read(data.join(text("file"))).unwrap();
            let given = given(content, &case.object("announce").unwrap().unwrap());
            let before = untouchables();
            let outcome = attempt(&store, &given);
            assert_eq!(untouchables(), before, "{name} touched the host");
            match &outcome {
                Ok(outcome) => {
                    assert_ne!(expect, "must_reject", "{name} was installed");
                    check_tree(&store, outcome);
                    check_details(name, outcome);
                    store.store.remove(outcome.path()).unwrap();
                    report += &format!("{name}: installed\n");
                }
                Err(error) => {
                    assert_ne!(expect, "must_accept", "{name}: {error}");
                    report += &format!("{name}: {error}\n");
                }
            }
            assert!(store.content().is_empty(), "{name} left {:?}", store.content());
            // The daemon lives on: the next package installs.
            let next = attempt(&store, &good).unwrap();
            store.store.remove(next.path()).unwrap();
        }
        report
    });
    if let Some(report) = report {
        expect_file!["hostile.txt"].assert_eq(&report);
    }
}

fn load_good(data: &Path, name: &str) -> Given {
    let index = fs::read_to_string(data.join("good.json")).unwrap();
    let index = Object::parse(&index).unwrap();
    given(fs::read(data.join(name)).unwrap(), &index.object(name).unwrap().unwrap())
}

/// Requirements of single packages that were installed.
fn check_details(name: &str, outcome: &Outcome) {
    let tree = outcome.tree();
    let stat = |path: &str| fs::symlink_metadata(tree.join(path)).unwrap();
    let opened = |path: &str| fs::File::open(tree.join(path)).unwrap();
    let opaque =
        |path: &str| sys::xattr::get_open(opened(path).as_fd(), sys::xattr::OPAQUE).unwrap();
    let all = || listing::scan(tree, outcome.gid(), &|| false).unwrap().0;
    match name {
        "h2-symlink-file-overwrite" => {
            assert!(stat("f").is_file());
            assert_eq!(fs::read(tree.join("f")).unwrap(), b"x\n");
        }
        "h2-dir-mode-through-link" => assert!(stat("d").is_dir()),
        "h3-chown-through-link" => {
            let links = all().into_values().filter(|node| matches!(node, Node::Symlink { .. }));
            assert!(links.count() >= 2);
        }
        "h6-setuid" => assert!(all().len() >= 6),
        "h7-file-capability" | "h7-overlay-xattrs" | "h7-selinux-acl" => {
            for (path, node) in all() {
                let path = String::from_utf8(path).unwrap();
                if matches!(node, Node::Directory { .. } | Node::File { .. }) {
                    assert_eq!(attributes(&opened(&path)), [""; 0], "{path}");
                }
            }
        }
        "h12-layer-twice" => {
            let Outcome::Service(_, image) = outcome else { panic!("a layer") };
            assert_eq!(image.layers.len(), 1);
        }
        "h15-non-utf8" => {
            assert!(all().into_keys().any(|path| path.windows(2).any(|two| two == b"\xff\xfe")));
        }
        "h16-reserved" => {
            assert!(!all().into_keys().any(|path| names::shown(&path).contains(".wh.")))
        }
        "h16-same-layer" => {
            let files: Vec<_> =
                all().into_iter().filter(|(path, _)| path.ends_with(b"f")).collect();
            assert!(matches!(files.as_slice(), [(_, Node::File { .. })]), "{files:?}");
        }
        "h16-layer-whiteouts" => {
            assert_eq!(all().get(&b"opt/removed"[..]), Some(&Node::Whiteout));
            assert_eq!(opaque("etc").as_deref(), Some(&b"y"[..]));
        }
        "h24-times" => {
            let now = sys::time::wall_ms() / 1000;
            for path in all().into_keys().filter(|path| !path.is_empty()) {
                let mtime = stat(&String::from_utf8(path).unwrap()).mtime();
                assert!((0..=now).contains(&mtime), "{mtime}");
            }
        }
        _ => {}
    }
}

/// Names of extended attributes that an archive could have set.
pub(super) fn attributes(file: &fs::File) -> Vec<&'static str> {
    let known = [
        c"security.capability",
        c"security.selinux",
        c"system.posix_acl_access",
        c"trusted.overlay.redirect",
        c"trusted.overlay.metacopy",
        c"trusted.overlay.opaque",
        c"user.overlay.opaque",
    ];
    let set = known
        .into_iter()
        .filter(|name| sys::xattr::get_open(file.as_fd(), name).unwrap().is_some());
    set.map(|name| name.to_str().unwrap()).collect()
}

#[test]
fn good_packages() {
    let Some(data) = data() else { return };
    in_private_tmp("good", TMP_BYTES, move || {
        let index = fs::read_to_string(data.join("good.json")).unwrap();
        let index = Object::parse(&index).unwrap();
        let mut trees = BTreeMap::new();
        for name in index.names() {
            let dir = scratch();
            let store = Store::new(dir.path());
            let entry = index.object(name).unwrap().unwrap();
            let outcome = attempt(&store, &load_good(&data, name)).unwrap();
            check_tree(&store, &outcome);
            if let Some(reference) = entry.str("rootfs_tree_digest").unwrap() {
                let listing = listing::scan(outcome.tree(), GID, &|| false).unwrap();
                assert_eq!(listing.reference_digest(), reference, "{name}");
            }
            if let Outcome::Service(row, image) = &outcome {
                let layers: Vec<_> = image.layers.iter().map(Digest::as_str).collect();
                assert_eq!(layers, entry.strings("layers").unwrap().unwrap());
                trees.insert(name, row.tree_digest.clone());
            }
            if let Some(files) = entry.string_map("content_files").unwrap() {
                for (path, sha256) in files {
                    let content = fs::read(outcome.tree().join(path)).unwrap();
                    assert_eq!(super::digest::hex(&sha2::Sha256::digest(content)), sha256);
                }
            }
            if name.contains("links-whiteouts") {
                check_links(outcome.tree());
            }
        }
        assert_eq!(trees["good/service.tar"], trees["good/service.tar.gz"]);
    });
}

fn check_links(tree: &Path) {
    let listing = listing::scan(tree, GID, &|| false).unwrap().0;
    let links = listing.values().filter(|node| matches!(node, Node::Symlink { .. })).count();
    assert_eq!(links, 4);
    assert_eq!(listing[&b"app/hard"[..]], listing[&b"app/run.sh"[..]]);
    assert_eq!(listing[&b"lower/gone"[..]], Node::Whiteout);
    assert!(!listing.contains_key(&b"lower/.wh.gone"[..]));
    assert!(matches!(listing[&b"opaque"[..]], Node::Directory { opaque: true, .. }));
    assert!(listing.contains_key(&b"opaque/kept"[..]));
    assert!(names(&tree.join("emptydir")).is_empty() && tree.join("emptydir").is_dir());
    let ino = |path: &str| fs::metadata(tree.join(path)).unwrap().ino();
    assert_eq!(ino("app/hard"), ino("app/run.sh"));
}

/// Services that the two Go releases left on disk.
#[test]
fn stores_of_the_reference() {
    let Some(stores) = folder("store") else { return };
    for release in ["go-8.0.1", "go-7.2.3"] {
        let dir = scratch();
        let content = fs::File::open(stores.join(release).join("content.tar")).unwrap();
        let mut archive = ::tar::Archive::new(content);
        archive.set_preserve_ownerships(true);
        archive.set_preserve_permissions(true);
        archive.unpack(dir.path()).unwrap();
        let store = Store::new(dir.path());
        let rows = reference_services(&stores.join(release), dir.path());
        assert_eq!(rows.len(), 3);
        for row in &rows {
            let image = store.store.load(row).unwrap();
            assert_eq!(image.image.os, "linux");
            store.store.verify_service(row, &|| false).unwrap();
        }
        assert!(rows.iter().any(|row| !store.store.load(row).unwrap().layers.is_empty()));
        let known: Vec<_> = rows.iter().map(|row| row.path.clone()).collect();
        assert!(store.store.tidy(&known, &Keep::Packages(Vec::new())).unwrap().is_empty());
        assert_eq!(names(&dir.path().join("services")).len(), 3);
        assert!(names(&dir.path().join("layers/sha256")).is_empty(), "no row named it");
    }
}

/// Rows of the table of services, with paths below another directory.
fn reference_services(release: &Path, dir: &Path) -> Vec<InstalledService> {
    let text = fs::read_to_string(release.join("tables.json")).unwrap();
    let tables: serde_json::Value = serde_json::from_str(&text).unwrap();
    let table = &tables["services"];
    let columns = table["columns"].as_array().unwrap();
    let at = |name: &str| columns.iter().position(|column| column[0] == name).unwrap();
    let row = |row: &serde_json::Value| {
        let text = |name: &str| row[at(name)].as_str().unwrap().to_owned();
        let path = text("imagePath");
        InstalledService {
            key: ServiceKey { id: ServiceId::new(&text("id")), version: "1".into() },
            provider_id: NetworkId::new(&text("providerID")),
            gid: u32::try_from(row[at("GID")].as_u64().unwrap()).unwrap(),
            path: dir.join(path.strip_prefix("/var/aos/workdirs/sm/").unwrap()),
            manifest_digest: bytes(&text("manifestDigest")),
            tree_digest: String::new(),
            package_digest: Vec::new(),
            size_bytes: 0,
            installed_at_ms: 0,
            unused_since_ms: None,
            confirmed: true,
        }
    };
    table["rows"].as_array().unwrap().iter().map(row).collect()
}
