//! Which tests stand for which requirement of the document of the platform, and for which bad input
//! of instances.

use super::numbered;
use crate::required::{Row, check};

/// Requirements of the document of the platform.
const PLATFORM: [Row; 20] = [
    ("P1", &[("src/probe.rs", &["runtimes_and_layouts"])]),
    ("P2", &[("tests/it/sim/order.rs", &["many_images_are_read_a_queue_full_at_a_time"])]),
    (
        "P3",
        &[
            ("src/runtime/spec/tests.rs", &["seccomp_profiles"]),
            (
                "tests/it/root/platform.rs",
                &["system_calls_are_filtered_with_runc", "system_calls_are_filtered_with_crun"],
            ),
        ],
    ),
    (
        "P4",
        &[(
            "tests/it/root/tracing.rs",
            &["only_the_runtime_is_run_and_the_network_takes_few_calls"],
        )],
    ),
    (
        "P5",
        &[
            ("src/sys/command.rs", &["a_child_inherits_nothing"]),
            (
                "tests/it/root/platform.rs",
                &[
                    "an_instance_inherits_nothing_from_the_daemon",
                    "an_instance_of_crun_inherits_nothing_from_the_daemon",
                ],
            ),
        ],
    ),
    ("P6", &[("tests/it/root/platform.rs", &["an_instance_inherits_nothing_from_the_daemon"])]),
    (
        "P7",
        &[
            ("src/children.rs", &["a_command_is_killed_at_its_deadline_with_its_children"]),
            ("src/runtime/crun/tests.rs", &["runc_hangs"]),
        ],
    ),
    (
        "P8",
        &[("tests/it/root/sampling.rs", &["a_poll_allocates_nothing_and_reads_each_file_once"])],
    ),
    ("P9", &[("src/runtime/crun/tests.rs", &["runc_failures_are_told", "crun_failures_are_told"])]),
    (
        "P10",
        &[(
            "src/runtime/crun/tests.rs",
            &["runc_containers_live_and_die", "crun_containers_live_and_die"],
        )],
    ),
    (
        "P11",
        &[(
            "src/runtime/crun/tests.rs",
            &["runc_killed_at_any_moment", "crun_killed_at_any_moment"],
        )],
    ),
    (
        "P12",
        &[
            ("tests/it/root/sweep.rs", &["everything_unwanted_is_killed_before_the_first_wait"]),
            (
                "tests/it/sim/adoption.rs",
                &["what_cannot_be_kept_is_killed_together_and_what_survives_is_left_alone"],
            ),
        ],
    ),
    ("P13", &[("tests/it/root/crashes.rs", &["killed_while_starting"])]),
    (
        "P14",
        &[(
            "src/runtime/crun/tests.rs",
            &["runc_containers_live_and_die", "crun_containers_live_and_die"],
        )],
    ),
    (
        "P15",
        &[(
            "tests/it/root/platform.rs",
            &[
                "disk_use_is_measured_where_quota_is_kept",
                "disk_use_is_unknown_where_no_quota_is_kept",
            ],
        )],
    ),
    (
        "P16",
        &[
            ("src/runtime/spec/tests.rs", &["rights_of_the_daemon", "quotas"]),
            ("src/runtime/limits.rs", &["limits_of_this_host"]),
        ],
    ),
    ("P17", &[("tests/it/tidy.rs", &["threads_and_channels_are_made_in_the_daemon"])]),
    ("P18", &[("src/network/channel.rs", &["what_passes_is_tried_again"])]),
    (
        "P19",
        &[(
            "src/network/tests/life.rs",
            &["a_namespace_is_ready_for_the_next_instance", "a_namespace_in_use_holds_no_link"],
        )],
    ),
    ("P20", &[("tests/it/tidy.rs", &["trace_messages_are_for_debug_builds"])]),
];

/// Tests of section 13.4 of the document of the platform.
const PLATFORM_TESTS: [Row; 11] = [
    ("1 64 instances", &[("tests/it/root/platform.rs", &["sixty_four_instances_come_and_go"])]),
    (
        "2 ends",
        &[
            (
                "src/runtime/crun/tests.rs",
                &[
                    "runc_ends_are_told",
                    "crun_ends_are_told",
                    "runc_failures_are_told",
                    "crun_failures_are_told",
                ],
            ),
            (
                "tests/it/root/hostile.rs",
                &["programs_that_cannot_run_with_runc", "programs_that_cannot_run_with_crun"],
            ),
        ],
    ),
    (
        "3 the daemon is killed",
        &[(
            "tests/it/root/kills.rs",
            &[
                "killed_at_random_steps_of_sixty_four",
                "killed_at_random_steps_of_sixty_four_with_runc",
            ],
        )],
    ),
    (
        "4 the runtime is killed",
        &[
            (
                "src/runtime/crun/tests.rs",
                &["runc_killed_at_any_moment", "crun_killed_at_any_moment"],
            ),
            (
                "tests/it/root/kills.rs",
                &[
                    "runtimes_killed_at_random_moments_with_crun",
                    "runtimes_killed_at_random_moments_with_runc",
                ],
            ),
        ],
    ),
    (
        "5 forged records",
        &[
            (
                "src/runtime/crun/tests.rs",
                &[
                    "runc_only_the_recorded_process_is_adopted",
                    "crun_only_the_recorded_process_is_adopted",
                ],
            ),
            ("src/runtime/record.rs", &["what_is_no_record_of_this_boot"]),
            (
                "tests/it/root/leaving.rs",
                &["a_record_with_the_number_of_another_process_harms_nobody"],
            ),
        ],
    ),
    (
        "6 an init that is handed over late",
        &[("src/children.rs", &["an_init_handed_over_late_keeps_its_status"])],
    ),
    (
        "7 output without a daemon",
        &[
            (
                "tests/it/root/logs.rs",
                &[
                    "restarts_of_the_daemon_cost_no_line_without_a_journal",
                    "restarts_of_the_daemon_cost_no_line_with_a_journal",
                ],
            ),
            (
                "tests/it/root/noise.rs",
                &[
                    "an_outage_that_is_longer_than_the_spool",
                    "a_hundred_thousand_lines_while_the_daemon_stands_still_or_is_gone",
                ],
            ),
        ],
    ),
    (
        "8 inherited state",
        &[(
            "tests/it/root/platform.rs",
            &[
                "an_instance_inherits_nothing_from_the_daemon",
                "an_instance_of_crun_inherits_nothing_from_the_daemon",
            ],
        )],
    ),
    (
        "9 crun alone on a hybrid host",
        &[(
            "tests/it/root/platform.rs",
            &["crun_alone_on_mixed_control_groups_is_one_clear_error"],
        )],
    ),
    (
        "10 many layers",
        &[
            ("src/runtime/rootfs/tests.rs", &["many_layers"]),
            ("src/sys/mount.rs", &["overlays_of_few_and_many_layers"]),
        ],
    ),
    ("11 idle", &[("tests/it/root/platform.rs", &["sixty_four_instances_come_and_go"])]),
];

/// What instances, their packages and the runtime may do wrong.
const BAD_INPUT: [Row; 13] = [
    (
        "service configuration",
        &[
            ("tests/it/root/values.rs", &["values_of_service_configurations"]),
            ("src/image/config.rs", &["other_service_configs"]),
        ],
    ),
    (
        "image configuration",
        &[
            ("tests/it/root/values.rs", &["values_of_image_configurations"]),
            ("src/image/config.rs", &["image_configs"]),
        ],
    ),
    (
        "node configuration",
        &[
            ("tests/it/root/values.rs", &["values_of_node_configurations"]),
            ("src/document/node_config.rs", &["limits", "refused"]),
        ],
    ),
    (
        "run request",
        &[
            (
                "tests/it/root/values.rs",
                &[
                    "values_of_run_requests",
                    "values_of_services_in_requests",
                    "values_of_packages_in_requests",
                ],
            ),
            (
                "src/cm/v4/tests.rs",
                &[
                    "garbage_is_an_error_and_nothing_worse",
                    "a_bad_instance_does_not_spoil_its_request",
                ],
            ),
        ],
    ),
    (
        "an entry point that is not there",
        &[
            ("tests/it/root/runtimes.rs", &["a_program_that_does_not_exist"]),
            (
                "tests/it/root/hostile.rs",
                &["programs_that_cannot_run_with_runc", "programs_that_cannot_run_with_crun"],
            ),
            (
                "src/runtime/program.rs",
                &["programs_that_a_runtime_refuses", "programs_that_do_not_run"],
            ),
        ],
    ),
    (
        "an entry point that exits at once, or with 0, or dies by a signal",
        &[(
            "tests/it/root/supervision.rs",
            &["the_start_limit_ends_a_crash_loop", "other_exit_codes", "a_signal_is_reported"],
        )],
    ),
    (
        "SIGTERM ignored",
        &[("tests/it/root/hostile.rs", &["an_instance_that_ignores_its_stop_signal_is_killed"])],
    ),
    ("a fork bomb", &[("tests/it/root/hostile.rs", &["a_fork_bomb_stays_within_its_limit"])]),
    (
        "memory beyond the limit",
        &[
            (
                "tests/it/root/hostile.rs",
                &["an_instance_that_eats_memory_for_ever_ends_at_its_start_limit"],
            ),
            (
                "tests/it/root/supervision.rs",
                &["out_of_memory_is_reported", "out_of_memory_is_reported_with_crun"],
            ),
        ],
    ),
    (
        "a device that disappears",
        &[(
            "tests/it/root/devices.rs",
            &["a_device_that_disappears_fails_the_next_start_and_serves_again_when_it_is_back"],
        )],
    ),
    (
        "a runtime that hangs",
        &[(
            "tests/it/root/runtimes.rs",
            &[
                "a_runtime_that_hangs",
                "a_runtime_that_hangs_at_the_start_of_what_it_created",
                "a_runtime_that_hangs_when_it_deletes",
            ],
        )],
    ),
    (
        "SIGKILL after each effect, and at random points",
        &[
            ("tests/it/sim/crashes.rs", &["killed_after_each_effect", "killed_in_each_port_call"]),
            (
                "tests/it/root/kills.rs",
                &[
                    "killed_at_random_steps_1",
                    "killed_at_random_steps_2",
                    "killed_at_random_steps_3",
                    "killed_at_random_steps_4",
                ],
            ),
        ],
    ),
    (
        "clock steps",
        &[
            (
                "tests/it/root/clock.rs",
                &["the_wall_clock_jumps_to_1970_and_to_2038_while_instances_run"],
            ),
            ("tests/it/sim/clock.rs", &["a_clock_step_is_no_event_for_what_runs"]),
        ],
    ),
];

#[test]
fn each_requirement_has_its_tests() {
    numbered(&PLATFORM, 'P');
    for rows in [&PLATFORM[..], &PLATFORM_TESTS, &BAD_INPUT] {
        check(rows);
    }
}
