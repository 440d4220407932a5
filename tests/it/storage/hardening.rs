//! Which tests stand for which requirement of the storage document: its hardening table (section
//! 12) and its vectors and cases (section 15). A requirement whose tests are renamed or removed
//! fails here.

use std::fs;
use std::path::Path;

const IMAGE: &str = "src/image/";
const TESTS: &str = "src/image/tests/";
const STORAGE: &str = "tests/it/storage/";
const ROOT: &str = "tests/it/root/";
const SIM: &str = "tests/it/sim/";

/// Requirement, and its tests as folder, file, function.
type Row = (&'static str, &'static [(&'static str, &'static str, &'static str)]);

/// Besides these, `storage::hostile::all_of_them_at_once` and `image::tests::given` are about all
/// of them as far as the shared data has packages.
const HARDENING: [Row; 25] = [
    (
        "H1 names that lead elsewhere",
        &[
            (TESTS, "hostile.rs", "names_that_lead_elsewhere"),
            (IMAGE, "names.rs", "names"),
            ("src/sys/", "fs.rs", "nothing_opens_outside_of_the_root"),
            (ROOT, "packages.rs", "hostile_packages"),
        ],
    ),
    ("H2 writing through links", &[(TESTS, "hostile.rs", "links_that_lead_elsewhere")]),
    (
        "H3 links in packages and trees",
        &[
            (TESTS, "hostile.rs", "packages_that_trick"),
            (TESTS, "hostile.rs", "links_that_lead_elsewhere"),
            ("src/sys/", "tree.rs", "trees_go_and_what_links_point_to_stays"),
        ],
    ),
    ("H4 hard links", &[(TESTS, "hostile.rs", "links_that_lead_elsewhere")]),
    (
        "H5 devices, FIFOs, sockets",
        &[
            (TESTS, "hostile.rs", "things_that_are_no_files"),
            (STORAGE, "injection.rs", "separators_in_paths_with_runc"),
        ],
    ),
    (
        "H6 modes and owners",
        &[
            (TESTS, "hostile.rs", "things_that_are_no_files"),
            (TESTS, "made.rs", "what_an_archive_becomes"),
            (TESTS, "made.rs", "layers"),
            (IMAGE, "staging.rs", "tidying"),
        ],
    ),
    ("H7 extended attributes", &[(TESTS, "hostile.rs", "things_that_are_no_files")]),
    (
        "H8 bombs",
        &[
            (TESTS, "hostile.rs", "sizes_that_lie"),
            (TESTS, "network.rs", "an_announcement_that_is_too_small_ends_the_download"),
            (TESTS, "network.rs", "what_nobody_wants_is_not_waited_for"),
        ],
    ),
    (
        "H9 entries, depth, inodes",
        &[
            (TESTS, "made.rs", "limits_of_an_archive"),
            (TESTS, "made.rs", "the_deepest_tree_can_be_removed"),
            (TESTS, "room.rs", "inodes_are_a_kind_of_room"),
        ],
    ),
    (
        "H10 headers",
        &[
            (TESTS, "hostile.rs", "extended_headers_without_measure"),
            (TESTS, "hostile.rs", "sizes_that_lie"),
            (IMAGE, "tar.rs", "limits_of_extended_headers"),
            (IMAGE, "tar.rs", "malformed_headers"),
        ],
    ),
    (
        "H11 digests",
        &[
            (IMAGE, "manifest.rs", "refused"),
            (STORAGE, "injection.rs", "separators_in_paths_with_crun"),
        ],
    ),
    (
        "H12 digests that coincide",
        &[(IMAGE, "manifest.rs", "manifests"), (TESTS, "hostile.rs", "packages_that_trick")],
    ),
    (
        "H13 blobs that are no files",
        &[
            (TESTS, "hostile.rs", "packages_that_trick"),
            (TESTS, "care.rs", "things_in_the_place_of_installed_files"),
        ],
    ),
    (
        "H14 documents without measure",
        &[
            (IMAGE, "manifest.rs", "manifests"),
            (TESTS, "made.rs", "members_of_a_package"),
            (TESTS, "hostile.rs", "packages_that_trick"),
            ("src/document/", "tests.rs", "limits"),
        ],
    ),
    (
        "H15 names that look alike",
        &[
            (TESTS, "hostile.rs", "names_that_look_alike"),
            (IMAGE, "names.rs", "messages_stay_short_and_printable"),
        ],
    ),
    (
        "H16 whiteouts",
        &[(TESTS, "hostile.rs", "whiteouts_that_trick"), (IMAGE, "names.rs", "meanings")],
    ),
    (
        "H17 packages that are swapped",
        &[(TESTS, "hostile.rs", "a_package_that_is_swapped_while_it_is_read")],
    ),
    ("H18 layers that lie", &[(TESTS, "made.rs", "layers")]),
    (
        "H19 installs without end, crashes",
        &[
            (IMAGE, "http/tests.rs", "time_limits"),
            (ROOT, "crashes.rs", "a_package_during_which_the_daemon_dies_twice_is_given_up"),
            (
                SIM,
                "requests.rs",
                "an_install_that_crashed_the_daemon_twice_waits_for_the_next_request",
            ),
            (STORAGE, "waiting.rs", "a_stop_does_not_wait_for_a_download"),
            (
                STORAGE,
                "waiting.rs",
                "a_silent_server_holds_the_next_package_no_longer_than_its_time_limit",
            ),
        ],
    ),
    (
        "H20 URLs",
        &[
            (STORAGE, "hostile.rs", "urls_that_lead_elsewhere"),
            (IMAGE, "http/tests.rs", "redirects"),
            (IMAGE, "download.rs", "what_is_opened"),
        ],
    ),
    (
        "H21 values in files of the host",
        &[
            (STORAGE, "injection.rs", "lines_in_values_of_packages"),
            (ROOT, "values.rs", "values_of_service_configurations"),
            ("src/runtime/", "checks.rs", "lines_of_hosts"),
        ],
    ),
    (
        "H22 options of mounts",
        &[
            (STORAGE, "injection.rs", "separators_in_paths_with_runc"),
            (STORAGE, "injection.rs", "separators_in_paths_with_crun"),
            ("src/sys/", "mount.rs", "overlays_of_few_and_many_layers"),
            ("src/runtime/", "checks.rs", "mounts_of_resources"),
        ],
    ),
    (
        "H23 competition for room",
        &[
            (TESTS, "room.rs", "the_reserve_is_kept_and_eviction_helps"),
            (TESTS, "room.rs", "the_limit_of_a_directory"),
            (TESTS, "room.rs", "what_waits_for_the_manifest_is_within_the_limit"),
            (TESTS, "room.rs", "packages_of_the_other_directory_make_room_on_the_partition"),
            (IMAGE, "budget.rs", "the_sum_of_reservations_is_what_was_reserved"),
            (STORAGE, "cases.rs", "the_limit_of_services"),
        ],
    ),
    ("H24 times", &[(TESTS, "hostile.rs", "things_that_are_no_files")]),
    (
        "few rights while unpacking",
        &[
            (STORAGE, "rights.rs", "the_fetch_thread_has_what_unpacking_takes"),
            (STORAGE, "rights.rs", "the_fetch_thread_writes_into_the_store_alone"),
            (IMAGE, "confine.rs", "installs_work_and_the_rest_of_the_host_is_out_of_reach"),
            ("src/sys/", "rights.rs", "writing_is_confined"),
        ],
    ),
];

const CASES: [Row; 13] = [
    ("SHA-3 of abc, in both sizes", &[(IMAGE, "digest.rs", "packages")]),
    ("digest of the blob {}", &[(IMAGE, "digest.rs", "blobs")]),
    ("directory digests of section 7", &[(IMAGE, "listing.rs", "the_digest_of_the_reference")]),
    (
        "kept, restored, replaced; a row without its directory",
        &[(STORAGE, "cases.rs", "kept_restored_and_updated")],
    ),
    (
        "the limit of services; no room beside what runs",
        &[
            (STORAGE, "cases.rs", "the_limit_of_services"),
            (TESTS, "room.rs", "the_limit_of_a_directory"),
        ],
    ),
    (
        "what is used is never evicted, the oldest goes first",
        &[
            (SIM, "packages.rs", "what_runs_is_neither_evicted_nor_outlived"),
            (SIM, "packages.rs", "what_a_running_install_may_evict_is_not_started_before_its_end"),
            (SIM, "packages.rs", "the_package_that_is_unused_longest_is_evicted_first"),
        ],
    ),
    (
        "killed while unpacking",
        &[
            (STORAGE, "kills.rs", "killed_at_every_point_1"),
            (STORAGE, "kills.rs", "killed_at_random_points_1"),
        ],
    ),
    (
        "modified content is found and fetched again",
        &[
            (STORAGE, "takeover.rs", "damage_after_the_switch_is_found_and_fetched_again"),
            (TESTS, "care.rs", "the_full_check_sees_everything"),
            (SIM, "packages.rs", "the_check_in_the_background_finds_damage"),
        ],
    ),
    (
        "a layer that is missing, with the reason",
        &[
            (ROOT, "packages.rs", "what_the_cm_names_but_does_not_exist"),
            (
                SIM,
                "requests.rs",
                "a_layer_that_cannot_be_installed_is_the_reason_why_its_service_does_not_run",
            ),
        ],
    ),
    (
        "a root file system with links, whiteouts, empty directories",
        &[(TESTS, "given.rs", "good_packages"), (TESTS, "made.rs", "what_an_archive_becomes")],
    ),
    (
        "limits of more than the whole",
        &[
            (STORAGE, "cases.rs", "limits_of_more_than_the_whole_are_lowered_with_a_warning"),
            (TESTS, "room.rs", "limits_that_exceed_the_partition_are_lowered"),
        ],
    ),
    (
        "a disk that is full at any write",
        &[(TESTS, "room.rs", "a_disk_that_becomes_full_at_any_moment")],
    ),
    (
        "stores of the reference",
        &[
            (STORAGE, "takeover.rs", "release_8"),
            (STORAGE, "takeover.rs", "release_7"),
            (STORAGE, "takeover.rs", "a_reset_wipes_what_was_not_even_taken_over"),
        ],
    ),
];

#[test]
fn each_requirement_has_its_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (requirement, tests) in HARDENING.iter().chain(&CASES) {
        for (folder, file, function) in *tests {
            let path = root.join(folder).join(file);
            let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
            let is_test = text.split("#[test]").skip(1).any(|rest| {
                let next = rest.split_once("fn ").map_or("", |(_, rest)| rest);
                next.strip_prefix(function).is_some_and(|rest| rest.starts_with('('))
            });
            assert!(is_test, "{requirement}: {function} is no test of {path:?}");
        }
    }
}
