//! Which tests stand for which requirement of the storage document: its hardening table (section
//! 12) and its vectors and cases (section 15). A requirement whose tests are renamed or removed
//! fails here.

use crate::required::{Row, check};

/// Besides these, `storage::hostile::all_of_them_at_once` and `image::tests::given` are about all
/// of them as far as the shared data has packages.
const HARDENING: [Row; 25] = [
    (
        "H1 names that lead elsewhere",
        &[
            ("src/image/tests/hostile.rs", &["names_that_lead_elsewhere"]),
            ("src/image/names.rs", &["names"]),
            ("src/sys/fs.rs", &["nothing_opens_outside_of_the_root"]),
            ("tests/it/root/packages.rs", &["hostile_packages"]),
        ],
    ),
    ("H2 writing through links", &[("src/image/tests/hostile.rs", &["links_that_lead_elsewhere"])]),
    (
        "H3 links in packages and trees",
        &[
            ("src/image/tests/hostile.rs", &["packages_that_trick"]),
            ("src/image/tests/hostile.rs", &["links_that_lead_elsewhere"]),
            ("src/sys/tree.rs", &["trees_go_and_what_links_point_to_stays"]),
        ],
    ),
    ("H4 hard links", &[("src/image/tests/hostile.rs", &["links_that_lead_elsewhere"])]),
    (
        "H5 devices, FIFOs, sockets",
        &[
            ("src/image/tests/hostile.rs", &["things_that_are_no_files"]),
            ("tests/it/storage/injection.rs", &["separators_in_paths_with_runc"]),
        ],
    ),
    (
        "H6 modes and owners",
        &[
            ("src/image/tests/hostile.rs", &["things_that_are_no_files"]),
            ("src/image/tests/made.rs", &["what_an_archive_becomes"]),
            ("src/image/tests/made.rs", &["layers"]),
            ("src/image/staging.rs", &["tidying"]),
        ],
    ),
    ("H7 extended attributes", &[("src/image/tests/hostile.rs", &["things_that_are_no_files"])]),
    (
        "H8 bombs",
        &[
            ("src/image/tests/hostile.rs", &["sizes_that_lie"]),
            (
                "src/image/tests/network.rs",
                &["an_announcement_that_is_too_small_ends_the_download"],
            ),
            ("src/image/tests/network.rs", &["what_nobody_wants_is_not_waited_for"]),
        ],
    ),
    (
        "H9 entries, depth, inodes",
        &[
            ("src/image/tests/made.rs", &["limits_of_an_archive"]),
            ("src/image/tests/made.rs", &["the_deepest_tree_can_be_removed"]),
            ("src/image/tests/room.rs", &["inodes_are_a_kind_of_room"]),
        ],
    ),
    (
        "H10 headers",
        &[
            ("src/image/tests/hostile.rs", &["extended_headers_without_measure"]),
            ("src/image/tests/hostile.rs", &["sizes_that_lie"]),
            ("src/image/tar.rs", &["limits_of_extended_headers"]),
            ("src/image/tar.rs", &["malformed_headers"]),
        ],
    ),
    (
        "H11 digests",
        &[
            ("src/image/manifest.rs", &["refused"]),
            ("tests/it/storage/injection.rs", &["separators_in_paths_with_crun"]),
        ],
    ),
    (
        "H12 digests that coincide",
        &[
            ("src/image/manifest.rs", &["manifests"]),
            ("src/image/tests/hostile.rs", &["packages_that_trick"]),
        ],
    ),
    (
        "H13 blobs that are no files",
        &[
            ("src/image/tests/hostile.rs", &["packages_that_trick"]),
            ("src/image/tests/care.rs", &["things_in_the_place_of_installed_files"]),
        ],
    ),
    (
        "H14 documents without measure",
        &[
            ("src/image/manifest.rs", &["manifests"]),
            ("src/image/tests/made.rs", &["members_of_a_package"]),
            ("src/image/tests/hostile.rs", &["packages_that_trick"]),
            ("src/document/tests.rs", &["limits"]),
        ],
    ),
    (
        "H15 names that look alike",
        &[
            ("src/image/tests/hostile.rs", &["names_that_look_alike"]),
            ("src/image/names.rs", &["messages_stay_short_and_printable"]),
        ],
    ),
    (
        "H16 whiteouts",
        &[
            ("src/image/tests/hostile.rs", &["whiteouts_that_trick"]),
            ("src/image/names.rs", &["meanings"]),
        ],
    ),
    (
        "H17 packages that are swapped",
        &[("src/image/tests/hostile.rs", &["a_package_that_is_swapped_while_it_is_read"])],
    ),
    ("H18 layers that lie", &[("src/image/tests/made.rs", &["layers"])]),
    (
        "H19 installs without end, crashes",
        &[
            ("src/image/http/tests.rs", &["time_limits"]),
            (
                "tests/it/root/crashes.rs",
                &["a_package_during_which_the_daemon_dies_twice_is_given_up"],
            ),
            (
                "tests/it/sim/requests.rs",
                &["an_install_that_crashed_the_daemon_twice_waits_for_the_next_request"],
            ),
            ("tests/it/storage/waiting.rs", &["a_stop_does_not_wait_for_a_download"]),
            (
                "tests/it/storage/waiting.rs",
                &["a_silent_server_holds_the_next_package_no_longer_than_its_time_limit"],
            ),
        ],
    ),
    (
        "H20 URLs",
        &[
            ("tests/it/storage/hostile.rs", &["urls_that_lead_elsewhere"]),
            ("src/image/http/tests.rs", &["redirects"]),
            ("src/image/download.rs", &["what_is_opened"]),
        ],
    ),
    (
        "H21 values in files of the host",
        &[
            ("tests/it/storage/injection.rs", &["lines_in_values_of_packages"]),
            ("tests/it/root/values.rs", &["values_of_service_configurations"]),
            ("src/runtime/checks.rs", &["lines_of_hosts"]),
        ],
    ),
    (
        "H22 options of mounts",
        &[
            ("tests/it/storage/injection.rs", &["separators_in_paths_with_runc"]),
            ("tests/it/storage/injection.rs", &["separators_in_paths_with_crun"]),
            ("src/sys/mount.rs", &["overlays_of_few_and_many_layers"]),
            ("src/runtime/checks.rs", &["mounts_of_resources"]),
        ],
    ),
    (
        "H23 competition for room",
        &[
            ("src/image/tests/room.rs", &["the_reserve_is_kept_and_eviction_helps"]),
            ("src/image/tests/room.rs", &["the_limit_of_a_directory"]),
            ("src/image/tests/room.rs", &["what_waits_for_the_manifest_is_within_the_limit"]),
            (
                "src/image/tests/room.rs",
                &["packages_of_the_other_directory_make_room_on_the_partition"],
            ),
            ("src/image/budget.rs", &["the_sum_of_reservations_is_what_was_reserved"]),
            ("tests/it/storage/cases.rs", &["the_limit_of_services"]),
        ],
    ),
    ("H24 times", &[("src/image/tests/hostile.rs", &["things_that_are_no_files"])]),
    (
        "few rights while unpacking",
        &[
            ("tests/it/storage/rights.rs", &["the_fetch_thread_has_what_unpacking_takes"]),
            ("tests/it/storage/rights.rs", &["the_fetch_thread_writes_into_the_store_alone"]),
            ("src/image/confine.rs", &["installs_work_and_the_rest_of_the_host_is_out_of_reach"]),
            ("src/sys/rights.rs", &["writing_is_confined"]),
        ],
    ),
];

const CASES: [Row; 13] = [
    ("SHA-3 of abc, in both sizes", &[("src/image/digest.rs", &["packages"])]),
    ("digest of the blob {}", &[("src/image/digest.rs", &["blobs"])]),
    (
        "directory digests of section 7",
        &[("src/image/listing.rs", &["the_digest_of_the_reference"])],
    ),
    (
        "kept, restored, replaced; a row without its directory",
        &[("tests/it/storage/cases.rs", &["kept_restored_and_updated"])],
    ),
    (
        "the limit of services; no room beside what runs",
        &[
            ("tests/it/storage/cases.rs", &["the_limit_of_services"]),
            ("src/image/tests/room.rs", &["the_limit_of_a_directory"]),
        ],
    ),
    (
        "what is used is never evicted, the oldest goes first",
        &[
            ("tests/it/sim/packages.rs", &["what_runs_is_neither_evicted_nor_outlived"]),
            (
                "tests/it/sim/packages.rs",
                &["what_a_running_install_may_evict_is_not_started_before_its_end"],
            ),
            ("tests/it/sim/packages.rs", &["the_package_that_is_unused_longest_is_evicted_first"]),
        ],
    ),
    (
        "killed while unpacking",
        &[
            ("tests/it/storage/kills.rs", &["killed_at_every_point_1"]),
            ("tests/it/storage/kills.rs", &["killed_at_random_points_1"]),
        ],
    ),
    (
        "modified content is found and fetched again",
        &[
            (
                "tests/it/storage/takeover.rs",
                &["damage_after_the_switch_is_found_and_fetched_again"],
            ),
            ("src/image/tests/care.rs", &["the_full_check_sees_everything"]),
            ("tests/it/sim/packages.rs", &["the_check_in_the_background_finds_damage"]),
        ],
    ),
    (
        "a layer that is missing, with the reason",
        &[
            ("tests/it/root/packages.rs", &["what_the_cm_names_but_does_not_exist"]),
            (
                "tests/it/sim/requests.rs",
                &["a_layer_that_cannot_be_installed_is_the_reason_why_its_service_does_not_run"],
            ),
        ],
    ),
    (
        "a root file system with links, whiteouts, empty directories",
        &[
            ("src/image/tests/given.rs", &["good_packages"]),
            ("src/image/tests/made.rs", &["what_an_archive_becomes"]),
        ],
    ),
    (
        "limits of more than the whole",
        &[
            (
                "tests/it/storage/cases.rs",
                &["limits_of_more_than_the_whole_are_lowered_with_a_warning"],
            ),
            ("src/image/tests/room.rs", &["limits_that_exceed_the_partition_are_lowered"]),
        ],
    ),
    (
        "a disk that is full at any write",
        &[("src/image/tests/room.rs", &["a_disk_that_becomes_full_at_any_moment"])],
    ),
    (
        "stores of the reference",
        &[
            ("tests/it/storage/takeover.rs", &["release_8"]),
            ("tests/it/storage/takeover.rs", &["release_7"]),
            ("tests/it/storage/takeover.rs", &["a_reset_wipes_what_was_not_even_taken_over"]),
        ],
    ),
];

#[test]
fn each_requirement_has_its_tests() {
    check(&HARDENING);
    check(&CASES);
}
