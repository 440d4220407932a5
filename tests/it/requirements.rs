//! Which tests stand for which requirement of the documents of instances and resources; those of
//! the platform, and bad input of instances, are in `platform`. A requirement whose tests are renamed
//! or removed fails here.

mod platform;

use crate::required::{Row, check};

/// Requirements of section 18 of the document of instances.
const REQUIREMENTS: [Row; 32] = [
    (
        "R1",
        &[(
            "tests/it/sim/requests.rs",
            &["verdict_policies", "a_new_service_is_installed_started_and_confirmed"],
        )],
    ),
    (
        "R2",
        &[
            (
                "tests/it/sim/supervision.rs",
                &[
                    "a_start_that_always_fails_ends_with_its_reason",
                    "the_start_limit_ends_a_crash_loop",
                ],
            ),
            ("tests/it/root/supervision.rs", &["the_start_limit_ends_a_crash_loop"]),
        ],
    ),
    (
        "R3",
        &[
            ("tests/it/sim/requests.rs", &["verdict_policies"]),
            (
                "tests/it/sim/supervision.rs",
                &[
                    "a_new_version_that_dies_at_once_is_failed_in_the_one_full_status",
                    "a_version_that_restarts_too_often_becomes_active_once_it_stays_up",
                ],
            ),
            (
                "tests/it/sim/adoption.rs",
                &["an_adopted_version_is_confirmed_when_its_time_has_come"],
            ),
            ("tests/it/root/peer.rs", &["a_bad_version_is_failed_and_the_one_before_comes_back"]),
        ],
    ),
    (
        "R4",
        &[
            (
                "tests/it/sim/requests.rs",
                &["a_newer_request_supersedes_one_that_is_being_carried_out"],
            ),
            (
                "tests/it/sim/statuses.rs",
                &["a_hanging_install_does_not_silence_the_others_for_ever"],
            ),
            ("tests/it/root/runtimes.rs", &["a_runtime_that_hangs"]),
        ],
    ),
    (
        "R5",
        &[
            ("src/event_loop/tests.rs", &["ends_of_inits_reach_core"]),
            (
                "src/children.rs",
                &[
                    "a_status_waits_for_its_registration",
                    "an_init_handed_over_late_keeps_its_status",
                ],
            ),
        ],
    ),
    (
        "R6",
        &[
            ("tests/it/sim/supervision.rs", &["exit_kinds"]),
            (
                "tests/it/root/supervision.rs",
                &[
                    "an_exit_code_is_reported",
                    "other_exit_codes",
                    "a_signal_is_reported",
                    "out_of_memory_is_reported",
                ],
            ),
        ],
    ),
    (
        "R7",
        &[(
            "src/children.rs",
            &["the_status_of_an_adopted_init_is_found", "an_adopted_init_reaped_by_its_parent"],
        )],
    ),
    ("R8", &[("tests/it/daemon/command_line.rs", &["an_old_kernel_is_refused"])]),
    (
        "R9",
        &[
            ("src/core/limiter.rs", &["vectors"]),
            ("src/probe.rs", &["runtimes_and_layouts"]),
            ("tests/it/root/run.rs", &["the_runtime_is_found"]),
        ],
    ),
    (
        "R10",
        &[
            ("src/runtime/cgroup.rs", &["leaves", "parents_of_others_stay"]),
            ("src/runtime/enforce.rs", &["lost_limits_are_set_again"]),
            ("tests/it/root/platform.rs", &["limits_that_were_lost_come_back_with_the_next_life"]),
            (
                "tests/it/root/systemd.rs",
                &["instances_live_in_a_delegated_subtree_beside_the_daemon"],
            ),
        ],
    ),
    (
        "R11",
        &[
            ("src/probe.rs", &["runtimes_and_layouts"]),
            (
                "tests/it/root/platform.rs",
                &["crun_alone_on_mixed_control_groups_is_one_clear_error"],
            ),
        ],
    ),
    (
        "R12",
        &[(
            "tests/it/root/logs.rs",
            &[
                "restarts_of_the_daemon_cost_no_line_without_a_journal",
                "restarts_of_the_daemon_cost_no_line_with_a_journal",
                "an_instance_survives_the_end_of_journald",
            ],
        )],
    ),
    (
        "R13",
        &[
            (
                "tests/it/root/leaving.rs",
                &[
                    "instances_are_stopped_with_the_daemon",
                    "instances_are_kept_on_exit",
                    "stop_instances_leaves_nothing",
                ],
            ),
            ("tests/it/daemon/peers.rs", &["further_signals_during_the_end_are_ignored"]),
        ],
    ),
    (
        "R14",
        &[
            (
                "src/runtime/record.rs",
                &["a_record_survives_its_file", "what_is_no_record_of_this_boot"],
            ),
            ("src/jobs/start.rs", &["a_fresh_start_and_its_undo_at_every_step"]),
        ],
    ),
    (
        "R15",
        &[
            ("tests/it/sim/adoption.rs", &["a_changed_instance_is_replaced"]),
            (
                "tests/it/root/crashes.rs",
                &[
                    "killed_with_running_instances",
                    "killed_with_running_instances_of_crun",
                    "other_hosts_in_the_configuration_restart_what_runs",
                ],
            ),
            (
                "src/runtime/crun/tests.rs",
                &[
                    "runc_only_the_recorded_process_is_adopted",
                    "crun_only_the_recorded_process_is_adopted",
                ],
            ),
        ],
    ),
    (
        "R16",
        &[
            (
                "tests/it/sim/requests.rs",
                &[
                    "permissions_wait_for_iam_and_hold_nobody_else",
                    "a_restarted_iam_restarts_those_whose_secret_changed",
                ],
            ),
            (
                "tests/it/sim/secrets.rs",
                &[
                    "a_secret_that_iam_lost_while_the_daemon_was_away",
                    "a_lost_secret_is_only_logged_if_so_configured",
                    "a_refusal_fails_the_start_until_the_next_request",
                ],
            ),
            ("tests/it/root/run.rs", &["a_secret_comes_from_iam"]),
        ],
    ),
    ("R17", &[("tests/it/root/crashes.rs", &["killed_with_running_instances"])]),
    (
        "R18",
        &[
            ("src/runtime/cgroup.rs", &["a_group_is_found_killed_and_removed"]),
            ("tests/it/root/sweep.rs", &["everything_unwanted_is_killed_before_the_first_wait"]),
            ("tests/it/root/leaving.rs", &["left_overs_without_a_record_are_removed_at_start"]),
            ("src/network/tests/life.rs", &["leftovers_of_a_crash_go_and_foreign_things_stay"]),
            ("tests/it/sim/secrets.rs", &["the_registration_of_a_leftover_goes_too"]),
        ],
    ),
    (
        "R19",
        &[(
            "src/jobs/start.rs",
            &["a_fresh_start_and_its_undo_at_every_step", "an_undo_goes_on_after_its_own_errors"],
        )],
    ),
    (
        "R20",
        &[
            ("src/runtime/cgroup.rs", &["a_group_is_found_killed_and_removed"]),
            ("tests/it/root/supervision.rs", &["every_process_of_an_instance_ends_with_it"]),
        ],
    ),
    (
        "R21",
        &[
            (
                "tests/it/sim/supervision.rs",
                &["stop_signal_and_grace", "grace_ends_with_the_deadline"],
            ),
            ("src/children.rs", &["stop_signals_respect_handlers"]),
            ("tests/it/root/supervision.rs", &["a_stop_signal_is_heard"]),
        ],
    ),
    (
        "R22",
        &[
            ("src/children.rs", &["a_command_is_killed_at_its_deadline_with_its_children"]),
            (
                "tests/it/root/runtimes.rs",
                &["a_runtime_that_hangs", "a_runtime_that_hangs_at_the_start_of_what_it_created"],
            ),
        ],
    ),
    (
        "R23",
        &[
            ("tests/it/sim/requests.rs", &["thousand_instances_and_one_more_than_allowed"]),
            ("tests/it/sim/order.rs", &["many_images_are_read_a_queue_full_at_a_time"]),
        ],
    ),
    (
        "R24",
        &[
            ("tests/it/sim/supervision.rs", &["delta_statuses_of_one_instance_are_a_second_apart"]),
            ("src/daemon/deltas.rs", &["the_newest_of_each_instance_for_the_newest_stream"]),
        ],
    ),
    (
        "R25",
        &[
            (
                "tests/it/sim/requests.rs",
                &["a_newer_request_supersedes_one_that_is_being_carried_out"],
            ),
            ("tests/it/daemon/requests.rs", &["too_many_log_requests_are_refused"]),
        ],
    ),
    (
        "R26",
        &[
            ("tests/it/daemon/requests.rs", &["instances_above_the_limit_are_refused_one_by_one"]),
            ("src/core/env.rs", &["limits"]),
            ("src/network/plan_tests.rs", &["bad_instances"]),
        ],
    ),
    (
        "R27",
        &[
            (
                "src/runtime/checks.rs",
                &["host_names", "lines_of_hosts", "kernel_parameters", "device_permissions"],
            ),
            (
                "src/runtime/env.rs",
                &["a_nul_is_refused", "resources_set_well_named_variables_of_their_own"],
            ),
            ("tests/it/root/values.rs", &["values_of_service_configurations"]),
        ],
    ),
    (
        "R28",
        &[
            (
                "tests/it/sim/clock.rs",
                &[
                    "pauses_and_verdicts_do_not_depend_on_the_wall_clock",
                    "offline_time_is_counted_without_the_wall_clock",
                    "a_variable_ends_by_the_wall_clock_when_that_passes_its_end",
                ],
            ),
            ("src/event_loop/tests.rs", &["a_clock_jump_reaches_core"]),
        ],
    ),
    (
        "R29",
        &[(
            "tests/it/sim/requests.rs",
            &[
                "a_failed_install_keeps_the_old_version_running_and_says_why",
                "a_layer_that_cannot_be_installed_is_the_reason_why_its_service_does_not_run",
            ],
        )],
    ),
    (
        "R30",
        &[("tests/it/root/hotplug.rs", &["quotas_of_new_starts_follow_the_cpus_that_are_online"])],
    ),
    (
        "R31",
        &[
            ("src/event_loop/tests.rs", &["an_idle_loop_has_no_timer"]),
            ("tests/it/root/platform.rs", &["sixty_four_instances_come_and_go"]),
        ],
    ),
    ("R32", &[("tests/it/root/leaving.rs", &["reset_removes_all_but_the_data_of_instances"])]),
];

/// Vectors of section 19 of the document of instances.
const VECTORS: [Row; 12] = [
    (
        "19.1 durations",
        &[
            ("src/document/duration.rs", &["texts", "numbers"]),
            ("src/config/tests.rs", &["durations"]),
        ],
    ),
    ("19.2 CPU quota", &[("src/runtime/spec/tests.rs", &["cpu_quotas"])]),
    (
        "19.3 environment",
        &[("src/runtime/env.rs", &["a_later_variable_takes_the_place_of_an_earlier_one"])],
    ),
    (
        "19.4 start limiter",
        &[
            ("src/core/limiter.rs", &["vectors", "exactly_the_interval_is_inside"]),
            (
                "tests/it/sim/table.rs",
                &["an_explicit_stop_opens_a_new_window_of_the_start_limiter"],
            ),
        ],
    ),
    (
        "19.5 another priority",
        &[("tests/it/sim/table.rs", &["another_priority_restarts_nothing_and_is_stored"])],
    ),
    (
        "19.5 another version",
        &[("tests/it/sim/table.rs", &["another_version_is_a_restart_under_the_same_id"])],
    ),
    ("19.5 failed", &[("tests/it/sim/table.rs", &["a_failed_instance_is_started_anew"])]),
    (
        "19.5 not wanted any more",
        &[("tests/it/sim/table.rs", &["what_is_not_wanted_any_more_is_stopped_and_forgotten"])],
    ),
    (
        "19.5 order of DNS servers",
        &[("tests/it/sim/table.rs", &["the_order_of_dns_servers_and_rules_is_no_difference"])],
    ),
    (
        "19.5 a device, lower priorities",
        &[("tests/it/sim/table.rs", &["lower_priorities_do_not_get_a_device_that_others_have"])],
    ),
    (
        "19.5 a device, higher priorities",
        &[("tests/it/sim/table.rs", &["higher_priorities_take_a_device_away"])],
    ),
    (
        "19.5 forced restart",
        &[("tests/it/sim/table.rs", &["a_forced_restart_stops_all_before_it_starts_any"])],
    ),
];

/// Tests of section 10 of the document of resources. Its second one is about protocol v3, which is
/// no dialect yet (D1).
const RESOURCES: [Row; 6] = [
    (
        "1 files of both releases",
        &[
            (
                "src/store/node_file.rs",
                &["files_of_the_releases_are_read", "documents_get_their_version"],
            ),
            ("src/document/node_config.rs", &["full_document_of_v4", "other_documents"]),
            ("src/document/tests.rs", &["keys_match_in_any_case_and_the_later_one_wins"]),
        ],
    ),
    (
        "3 requests of v4",
        &[
            (
                "tests/it/daemon/requests.rs",
                &["registration_and_an_empty_full_status", "node_configuration"],
            ),
            ("src/store/node_file.rs", &["no_file_is_no_error"]),
            (
                "tests/it/sim/statuses.rs",
                &["configuration_requests_are_answered_in_order_and_once"],
            ),
        ],
    ),
    (
        "4 devices of the host",
        &[
            ("src/daemon/world.rs", &["devices_of_a_node_configuration"]),
            ("src/runtime/devices.rs", &["nodes_links_and_directories", "group_ids"]),
            (
                "tests/it/root/devices.rs",
                &[
                    "links_directories_and_names_of_their_own",
                    "bad_devices_are_told_together_and_alerted_one_by_one",
                ],
            ),
            ("tests/it/sim/node_config.rs", &["a_device_that_comes_back_lets_its_instances_start"]),
        ],
    ),
    (
        "5 a failed update",
        &[
            ("tests/it/root/values.rs", &["values_of_node_configurations"]),
            (
                "tests/it/daemon/node_file.rs",
                &[
                    "killed_at_each_step_of_the_first_node_configuration",
                    "killed_at_each_step_of_another_node_configuration",
                ],
            ),
            (
                "src/store/node_file.rs",
                &["limits_and_failures_leave_the_old_file", "damage_is_answered_with_the_backup"],
            ),
        ],
    ),
    (
        "6 allocation",
        &[
            (
                "tests/it/sim/node_config.rs",
                &[
                    "of_equal_priorities_the_same_instances_have_the_device_each_time",
                    "a_held_device_is_granted_only_after_the_stop",
                ],
            ),
            ("tests/it/sim/table.rs", &["higher_priorities_take_a_device_away"]),
        ],
    ),
    ("7 durations of alert rules", &[("src/document/rules.rs", &["timeouts"])]),
];

/// Rows that have a letter and consecutive numbers as names.
fn numbered(rows: &[Row], letter: char) {
    for (number, (name, _)) in (1..).zip(rows) {
        assert_eq!(*name, format!("{letter}{number}"));
    }
}

#[test]
fn each_requirement_has_its_tests() {
    numbered(&REQUIREMENTS, 'R');
    for rows in [&REQUIREMENTS[..], &VECTORS, &RESOURCES] {
        check(rows);
    }
}
