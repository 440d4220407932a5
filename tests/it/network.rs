//! Which tests stand for which requirement of the network document: its list of tests (section 22),
//! the weaknesses of the reference that it wants gone, and bad input. A requirement whose tests are
//! renamed or removed fails here.

use crate::required::{Row, check};

/// Section 22.
const CASES: [Row; 26] = [
    (
        "what the kernel lacks is found by asking it",
        &[("src/network/caps.rs", &["questions_and_real_requests_agree"])],
    ),
    (
        "messages byte for byte",
        &[
            ("src/network/tests/encoding.rs", &["links_and_addresses", "tables_sets_and_objects"]),
            ("src/network/tests/encoding_rules.rs", &["questions", "rules_of_each_kind"]),
            ("src/network/rtnl.rs", &["vlan_bytes", "route_bytes"]),
            ("src/network/shaping.rs", &["message_bytes"]),
            ("src/network/conntrack.rs", &["message_bytes"]),
        ],
    ),
    (
        "who reaches whom",
        &[(
            "src/network/tests/reach.rs",
            &[
                "instances_of_one_network_reach_each_other_and_the_node",
                "networks_are_isolated_but_for_allowed_connections",
                "the_outside_is_reached_masqueraded_and_reaches_exposed_ports_only",
                "nobody_sends_with_an_address_that_is_not_his",
            ],
        )],
    ),
    (
        "with and without bridge-nf-call-iptables",
        &[("src/network/tests/reach.rs", &["rules_hold_with_and_without_filtering_in_bridges"])],
    ),
    (
        "with and without the table of the OS",
        &[
            ("src/network/tests/reach.rs", &["rules_hold_in_a_table_that_drops"]),
            ("src/network/tests/faults.rs", &["rules_stand_beside_those_of_the_os"]),
        ],
    ),
    (
        "a quota cuts off and opens again; local traffic goes on",
        &[(
            "src/network/tests/traffic.rs",
            &[
                "limits_cut_off_and_neighbours_stay",
                "a_new_period_opens_what_a_limit_has_closed",
                "a_limit_opens_again_while_the_daemon_runs",
            ],
        )],
    ),
    (
        "counters go on after a restart",
        &[("src/network/tests/traffic.rs", &["counters_survive_daemon_and_node"])],
    ),
    (
        "rates of 1 and 20 Mbit",
        &[("src/network/tests/limits.rs", &["rates_are_kept_within_a_tenth"])],
    ),
    (
        "attach and detach 200 times",
        &[(
            "src/network/tests/life.rs",
            &["two_hundred_cycles_leave_nothing_and_are_fast", "nothing_is_left_after_detach"],
        )],
    ),
    (
        "killed between any two steps",
        &[
            (
                "tests/it/root/kills.rs",
                &[
                    "killed_at_random_steps_1",
                    "killed_at_random_steps_2",
                    "killed_at_random_steps_3",
                    "killed_at_random_steps_4",
                ],
            ),
            ("src/network/tests/life.rs", &["leftovers_of_a_crash_go_and_foreign_things_stay"]),
        ],
    ),
    (
        "an address is used again directly",
        &[
            ("src/network/tests/life.rs", &["attach_replaces_what_is_there"]),
            (
                "src/network/tests/reach.rs",
                &["old_connections_do_not_reach_the_next_owner_of_an_address"],
            ),
        ],
    ),
    (
        "the same instance comes back at once",
        &[("src/network/tests/life.rs", &["attach_replaces_what_is_there"])],
    ),
    (
        "a namespace that somebody else holds",
        &[("src/network/tests/life.rs", &["a_namespace_in_use_holds_no_link"])],
    ),
    (
        "a flushed ruleset",
        &[
            ("src/network/tests/life.rs", &["flushed_rules_come_back"]),
            ("src/network/tests/faults.rs", &["what_others_delete_comes_back"]),
        ],
    ),
    (
        "networks that come twice, go, change",
        &[
            ("src/network/plan_tests.rs", &["lists_of_networks"]),
            ("src/network/tests/faults.rs", &["bad_networks_do_not_stop_good_ones"]),
            (
                "src/network/tests/life.rs",
                &[
                    "a_removed_network_drains",
                    "a_draining_network_outlives_the_daemon",
                    "a_removed_network_goes_after_a_while",
                    "changes_of_a_network_are_applied",
                ],
            ),
        ],
    ),
    (
        "ids of 36 characters",
        &[
            (
                "src/network/tests/life.rs",
                &["networks_have_long_names", "an_unlisted_network_is_made_for_its_instance"],
            ),
            ("src/network/naming.rs", &["bridge_names"]),
        ],
    ),
    ("VLAN 0, 4095, 4096", &[("src/network/tests/faults.rs", &["vlans_are_optional"])]),
    (
        "no default route",
        &[
            ("src/network/tests/vlan.rs", &["a_vlan_comes_and_goes_with_its_uplink"]),
            ("src/network/tests/reach.rs", &["the_outside_is_reached_over_any_uplink"]),
        ],
    ),
    (
        "hosts and resolv.conf byte for byte",
        &[
            ("src/network/names.rs", &["hosts_bytes", "resolv_conf_bytes"]),
            (
                "src/network/tests/reach.rs",
                &["instances_of_one_network_reach_each_other_and_the_node"],
            ),
        ],
    ),
    (
        "a conflict in a batch fails exactly its instance",
        &[(
            "src/network/tests/life.rs",
            &[
                "a_key_in_foreign_use_fails_exactly_its_instance",
                "one_bad_instance_does_not_stop_those_that_come_with_it",
            ],
        )],
    ),
    (
        "names, case, reverse names, other types",
        &[
            (
                "src/network/tests/dns.rs",
                &["names_of_the_node_are_known", "a_real_resolver_finds_names"],
            ),
            ("src/network/packet.rs", &["reverse_names"]),
            ("tests/it/root/run.rs", &["instances_find_each_other_by_name"]),
        ],
    ),
    (
        "unknown names go upstream; silent servers",
        &[(
            "src/network/tests/dns.rs",
            &["other_names_are_asked_upstream", "silent_servers_are_given_up_in_time"],
        )],
    ),
    (
        "long answers over TCP",
        &[(
            "src/network/tests/dns.rs",
            &[
                "long_answers_come_over_connections",
                "connections_are_limited_and_bad_ones_end",
                "slow_connections_end",
            ],
        )],
    ),
    (
        "malformed packets",
        &[
            (
                "src/network/packet.rs",
                &[
                    "unfit_packets",
                    "hostile_names",
                    "any_packet_is_survived",
                    "damaged_queries_are_survived",
                ],
            ),
            ("src/network/fuzzing.rs", &["corpus"]),
        ],
    ),
    ("64 queries under way", &[("src/network/tests/dns.rs", &["queries_under_way_are_limited"])]),
    (
        "calls of one attach, no program",
        &[
            (
                "tests/it/root/tracing.rs",
                &[
                    "one_attach_takes_few_calls",
                    "only_the_runtime_is_run_and_the_network_takes_few_calls",
                ],
            ),
            (
                "src/network/tests/life.rs",
                &[
                    "no_process_is_made_while_sixteen_instances_come_and_go",
                    "a_namespace_is_ready_for_the_next_instance",
                ],
            ),
        ],
    ),
];

/// What the reference does badly; what is a case of its own stands above.
const WEAKNESSES: [Row; 17] = [
    (
        "VLAN ids that cannot be, or come twice",
        &[
            ("src/network/tests/faults.rs", &["vlans_are_optional"]),
            ("src/network/tests/vlan.rs", &["a_foreign_vlan_is_not_touched"]),
        ],
    ),
    (
        "a failure of one network is told, and tried again",
        &[(
            "src/network/tests/faults.rs",
            &[
                "bad_networks_do_not_stop_good_ones",
                "a_network_comes_when_what_was_in_its_way_has_gone",
            ],
        )],
    ),
    (
        "another address of the node",
        &[(
            "src/network/tests/life.rs",
            &["changes_of_a_network_are_applied", "a_draining_network_outlives_the_daemon"],
        )],
    ),
    (
        "what a crash leaves does not hinder",
        &[(
            "src/network/tests/life.rs",
            &[
                "leftovers_of_a_crash_go_and_foreign_things_stay",
                "what_is_gone_is_not_adopted",
                "a_restart_of_the_daemon_loses_no_packet",
            ],
        )],
    ),
    (
        "the uplink changes",
        &[("src/network/tests/reach.rs", &["the_outside_is_reached_over_any_uplink"])],
    ),
    (
        "a failed attach leaves nothing",
        &[
            ("src/network/tests/faults.rs", &["bad_instances_leave_nothing"]),
            ("src/network/tests/life.rs", &["a_key_in_foreign_use_fails_exactly_its_instance"]),
        ],
    ),
    (
        "the bucket is as large as TCP needs",
        &[
            ("src/network/tests/limits.rs", &["rates_are_kept_within_a_tenth"]),
            ("src/network/shaping.rs", &["buckets"]),
        ],
    ),
    (
        "names of other nodes, other types of own names",
        &[(
            "src/network/tests/dns.rs",
            &["other_names_are_asked_upstream", "names_of_the_node_are_known"],
        )],
    ),
    (
        "names are reserved",
        &[
            ("src/network/tests/faults.rs", &["bad_instances_leave_nothing"]),
            (
                "src/network/tests/life.rs",
                &["one_bad_instance_does_not_stop_those_that_come_with_it"],
            ),
        ],
    ),
    (
        "counters begin with what was stored",
        &[("src/network/tests/traffic.rs", &["counters_survive_daemon_and_node"])],
    ),
    (
        "limits act at once, also in crash loops",
        &[(
            "src/network/tests/traffic.rs",
            &["limits_cut_off_and_neighbours_stay", "counters_survive_daemon_and_node"],
        )],
    ),
    (
        "jumps of the clock",
        &[("src/network/traffic.rs", &["a_period_ends_forward_in_time_only", "calendar"])],
    ),
    (
        "rows are written when they are worth it",
        &[(
            "src/network/traffic.rs",
            &["rows_go_out_when_they_are_worth_it", "who_is_gone_leaves_no_row"],
        )],
    ),
    (
        "verdicts do not depend on the order of instances",
        &[("src/network/tests/reach.rs", &["networks_are_isolated_but_for_allowed_connections"])],
    ),
    (
        "forwarding is switched on",
        &[
            ("src/network/tests/faults.rs", &["forwarding_that_cannot_be_enabled_is_an_error"]),
            (
                "src/network/tests/reach.rs",
                &["the_outside_is_reached_masqueraded_and_reaches_exposed_ports_only"],
            ),
        ],
    ),
    (
        "what the successor leaves",
        &[("src/network/tests/faults.rs", &["rules_of_the_successor_go"])],
    ),
    (
        "what the reference leaves",
        &[
            ("src/network/reference.rs", &["its_processes_and_files_go_and_others_stay"]),
            ("src/network/tests/faults.rs", &["the_bridge_of_the_database_is_taken_over"]),
            (
                "src/network/tests/vlan.rs",
                &[
                    "the_vlan_of_the_reference_is_taken_over",
                    "the_vlan_of_the_database_is_taken_over",
                ],
            ),
        ],
    ),
];

/// Bad input, poor kernels, and what else an instance may meet.
const BAD_INPUT: [Row; 14] = [
    (
        "subnets, addresses, duplicates, overlaps",
        &[
            (
                "src/network/plan_tests.rs",
                &["subnets", "addresses_in_a_subnet", "lists_of_networks"],
            ),
            (
                "src/network/tests/faults.rs",
                &["bad_instances_leave_nothing", "bad_networks_do_not_stop_good_ones"],
            ),
        ],
    ),
    (
        "more than the limits, malformed ports, hostile names",
        &[
            ("src/network/plan_tests.rs", &["bad_instances", "no_more_networks_than_the_limit"]),
            ("src/network/names.rs", &["hostnames"]),
        ],
    ),
    (
        "an interface of the same name that is foreign",
        &[
            ("src/network/tests/faults.rs", &["foreign_links_are_not_touched"]),
            ("src/network/tests/vlan.rs", &["a_foreign_vlan_is_not_touched"]),
        ],
    ),
    ("no VLANs", &[("src/network/tests/faults.rs", &["a_kernel_without_vlans_is_reported_once"])]),
    (
        "no bridges, no pairs, no nf_tables",
        &[(
            "src/network/tests/faults.rs",
            &[
                "a_kernel_without_bridges_or_pairs_is_reported",
                "a_kernel_without_nf_tables_is_reported",
            ],
        )],
    ),
    (
        "no tbf",
        &[(
            "src/network/tests/limits.rs",
            &[
                "without_tbf_the_rules_drop_what_is_too_fast",
                "without_any_limit_an_instance_is_refused_unless_it_may_run_without",
            ],
        )],
    ),
    (
        "no quotas",
        &[("src/network/tests/traffic.rs", &["without_quotas_limits_act_when_counters_are_read"])],
    ),
    (
        "no memory for the moment, lost announcements, interrupted dumps",
        &[
            ("src/network/channel.rs", &["what_passes_is_tried_again"]),
            ("src/network/tests/faults.rs", &["a_busy_kernel_is_asked_again"]),
            (
                "src/network/notices.rs",
                &[
                    "lost_announcements_are_noticed",
                    "lost_announcements_are_made_up_for",
                    "interrupted_lists_are_repeated",
                ],
            ),
        ],
    ),
    (
        "answers of the kernel that make no sense",
        &[
            ("src/network/rtnl.rs", &["any_answer_is_survived"]),
            ("src/network/listing.rs", &["any_answer_is_survived"]),
            ("src/network/wire.rs", &["reading_anything_ends"]),
            ("src/network/channel.rs", &["decodes_errors"]),
        ],
    ),
    (
        "a port of the name server in use",
        &[("src/network/tests/faults.rs", &["a_network_works_without_its_name_server"])],
    ),
    (
        "limits change while an instance runs",
        &[("src/network/tests/limits.rs", &["limits_change_while_an_instance_runs"])],
    ),
    (
        "64 instances at once",
        &[("src/network/tests/life.rs", &["sixty_four_instances_come_at_once"])],
    ),
    (
        "no IPv6 unless configured",
        &[(
            "src/network/tests/ipv6.rs",
            &["routers_do_not_give_addresses_to_instances", "there_is_no_ipv6_between_networks"],
        )],
    ),
    (
        "nodes connected by VLANs, sizes of frames",
        &[(
            "src/network/tests/vlan.rs",
            &["a_network_spans_nodes", "links_have_the_mtu_of_the_uplink"],
        )],
    ),
];

#[test]
fn each_requirement_has_its_tests() {
    check(&CASES);
    check(&WEAKNESSES);
    check(&BAD_INPUT);
}
