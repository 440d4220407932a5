use std::fs;

use expect_test::{Expect, expect};

use super::*;
use crate::model::status::chain;

fn decode(text: &str) -> Result<(Config, Vec<String>), document::Error> {
    decode::config(&Object::parse(text)?, Path::new("/cwd"))
}

fn config(text: &str) -> Config {
    decode(text).unwrap_or_else(|error| panic!("{text}: {error}")).0
}

#[test]
fn every_default() {
    let (config, warnings) = decode("{}").unwrap();
    assert!(warnings.is_empty());
    expect![[r#"
        Config {
            ca_cert: "",
            cert_type: "sm",
            cm_server_url: "",
            iam_protected_server_url: "",
            iam_public_server_url: "",
            cm_reconnect_timeout: 10s,
            working_dir: "/cwd",
            storage_dir: "/cwd/storages",
            state_dir: "/cwd/states",
            services_dir: "/cwd/services",
            layers_dir: "/cwd/layers",
            download_dir: "/cwd/download",
            extract_dir: "/cwd/extract",
            node_config_file: "/cwd/aos_node.cfg",
            unit_config_file: "/cwd/aos_unit.cfg",
            run_dir: "/run/aos",
            services_part_limit: 0,
            layers_part_limit: 0,
            service_ttl: 2592000s,
            layer_ttl: 2592000s,
            disk_reserve_percent: 2,
            install: Install {
                max_entries: 200000,
                max_depth: 128,
            },
            instances: Instances {
                runtime: None,
                cgroup_parent: "/system.slice/system-aos\\x2dservice.slice",
                start_verdict: ConfirmNew,
                keep_on_exit: false,
                stop_timeout: 5s,
                restart_on_secret_change: true,
                max_instances: 1024,
                allow_root_uid: false,
                seccomp_profile: None,
                allowed_devices: [],
                host_binds: [
                    "bin",
                    "sbin",
                    "lib",
                    "lib64",
                    "usr",
                ],
                hosts: [],
            },
            network: Network {
                vlan_parent: "",
                dns_builtin: true,
                dns_fallback: [
                    8.8.8.8,
                ],
                firewall: true,
                open_inbound: false,
                bandwidth_optional: false,
                traffic_period: Day,
                traffic_persist_period: 60s,
                local_networks: [
                    Cidr {
                        address: 10.0.0.0,
                        prefix: 8,
                    },
                    Cidr {
                        address: 127.0.0.0,
                        prefix: 8,
                    },
                    Cidr {
                        address: 172.16.0.0,
                        prefix: 12,
                    },
                    Cidr {
                        address: 192.168.0.0,
                        prefix: 16,
                    },
                ],
                drain_timeout: 60s,
            },
            monitoring: Monitoring {
                poll_period: 10s,
                average_window: 60s,
                send_period: 60s,
                ram_figure: Anonymous,
                partitions: [],
            },
            logging: Logging {
                max_part_size_bytes: 524288,
                max_part_count: 20,
                backend: Auto,
                journal_dir: "/run/systemd/journal",
                spool_size_bytes: 262144,
                instance_store_size_bytes: 2097152,
                store_size_bytes: 33554432,
                retention: 604800s,
                sync_period: 30s,
                rate_lines: 10000,
                rate_bytes: 4194304,
                system_log_files: [],
            },
            journal_alerts: JournalAlerts {
                filter: [],
                service_alert_priority: 4,
                system_alert_priority: 3,
                kernel: None,
            },
            pkcs11_module: "",
            remote_node: false,
            runner_features: [],
        }
    "#]]
    .assert_debug_eq(&config);
}

#[test]
fn paths_follow_the_working_directory() {
    let check = |text: &str, pick: fn(&Config) -> &Path, expect: &str| {
        assert_eq!(pick(&config(text)), Path::new(expect), "{text}");
    };
    let w = r#"{"workingDir":"/w"}"#;
    check(w, |c| &c.storage_dir, "/w/storages");
    check(w, |c| &c.state_dir, "/w/states");
    check(w, |c| &c.services_dir, "/w/services");
    check(w, |c| &c.layers_dir, "/w/layers");
    check(w, |c| &c.download_dir, "/w/download");
    check(w, |c| &c.extract_dir, "/w/extract");
    check(w, |c| &c.node_config_file, "/w/aos_node.cfg");
    check(w, |c| &c.unit_config_file, "/w/aos_unit.cfg");
    check(r#"{"workingDir":"work/"}"#, |c| &c.state_dir, "/cwd/work/states");
    check(r#"{"workingDir":"/w","stateDir":""}"#, |c| &c.state_dir, "/w/states");
    check(r#"{"workingDir":"/w","stateDir":null}"#, |c| &c.state_dir, "/w/states");
    check(r#"{"workingDir":"/w","stateDir":"/s"}"#, |c| &c.state_dir, "/s");
    check(r#"{"workingDir":"/w","stateDir":"s"}"#, |c| &c.state_dir, "/cwd/s");
    check(r#"{"unitConfigFile":"/u/unit.cfg"}"#, |c| &c.node_config_file, "/u/aos_node.cfg");
    check(r#"{"unitConfigFile":"/u/unit.cfg"}"#, |c| &c.unit_config_file, "/u/unit.cfg");
    let both = r#"{"unitConfigFile":"/u/unit.cfg","nodeConfigFile":"/n/node.cfg"}"#;
    check(both, |c| &c.node_config_file, "/n/node.cfg");
    check(both, |c| &c.unit_config_file, "/u/unit.cfg");
    check(r#"{"runDir":"/tmp/run"}"#, |c| &c.run_dir, "/tmp/run");
    assert_eq!(config(w).database(), Path::new("/w/servicemanager.db"));
    assert_eq!(config("{}").lock_file(), Path::new("/run/aos/sm.lock"));
}

/// Spellings and keys as product images have them.
#[test]
fn a_product_file() {
    let (config, warnings) = decode(
        r#"{
        "fcrypt": {"CACert": "x"}, "smServerUrl": ":8888", "boardConfigFile": "x",
        "CACert": "/etc/ssl/certs/rootCA.crt",
        "CertStorage": "sm",
        "CMServerURL": "aoscm:8093",
        "IAMProtectedServerURL": "aosiam:8089",
        "IAMPublicServerURL": "aosiam:8090",
        "WorkingDir": "/var/aos/workdirs/sm",
        "StorageDir": "/var/aos/storages",
        "StateDir": "/var/aos/states",
        "ServicesPartLimit": 40, "LayersPartLimit": 40,
        "serviceTTLDays": 1,
        "RunnerFeatures": ["crun", "runc"],
        "hosts": [{"ip": "127.0.0.1", "hostName": "wwwivi"}, {"IP": "::1", "Hostname": "a b"}],
        "Monitoring": {"PollPeriod": "1s", "SendPeriod": "2s",
            "partitions": [{"name": "states", "types": ["states"], "path": "/var"}]},
        "logging": {"maxPartSize": 1024}, "Logging": {"MaxPartCount": 10, "maxPartSize": 2048},
        "JournalAlerts": {"Filter": ["a", null], "serviceAlertPriority": 7},
        "Migration": {"MigrationPath": "/usr/share/aos/sm/migration", "mergedMigrationPath": "x"},
        "serviceHealthCheckTimeout": "35s"
    }"#,
    )
    .unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(config.ca_cert, Path::new("/etc/ssl/certs/rootCA.crt"));
    assert_eq!(config.cert_type, "sm");
    assert_eq!(config.cm_server_url, "aoscm:8093");
    assert_eq!(config.iam_protected_server_url, "aosiam:8089");
    assert_eq!(config.iam_public_server_url, "aosiam:8090");
    assert_eq!((config.services_part_limit, config.layers_part_limit), (40, 40));
    assert_eq!(config.service_ttl, Duration::from_secs(86_400));
    assert_eq!(config.layer_ttl, Duration::from_secs(30 * 86_400));
    assert_eq!(config.runner_features, ["crun", "runc"]);
    let hosts: Vec<_> = config.instances.hosts.iter().map(|h| (&*h.ip, &*h.hostname)).collect();
    assert_eq!(hosts, [("127.0.0.1", "wwwivi"), ("::1", "a b")]);
    assert_eq!(config.monitoring.poll_period, Duration::from_secs(1));
    assert_eq!(config.monitoring.send_period, Duration::from_secs(2));
    assert_eq!(config.monitoring.partitions[0].types, ["states"]);
    assert_eq!(config.logging.max_part_size_bytes, 2048);
    assert_eq!(config.logging.max_part_count, 10);
    assert_eq!(config.journal_alerts.filter, ["a", ""]);
    assert_eq!(config.journal_alerts.service_alert_priority, 7);
}

#[test]
fn our_own_keys() {
    let own = config(
        r#"{
        "runtime": "/usr/bin/runc", "cgroupParent": "/a//b/", "startVerdict": "immediate",
        "keepInstancesOnExit": true, "stopTimeout": "PT0S", "restartOnSecretChange": false,
        "maxInstances": 1, "allowRootUid": true, "seccompProfile": "/p.json",
        "allowedDevices": ["/dev/mem"], "pkcs11Module": "/lib/p.so", "cmReconnectTimeout": "1m",
        "diskReservePercent": 0, "install": {"maxEntries": 1, "maxDepth": 1000},
        "hostBinds": ["bin", "opt"], "remoteNode": true,
        "network": {"vlanParent": "eth0", "dns": {"mode": "none", "fallback": ["1.1.1.1", "::1"]},
            "firewall": "none", "openInbound": true, "bandwidthOptional": true,
            "trafficPeriod": "year", "trafficPersistPeriod": "24h",
            "localNetworks": ["fd00::/8", "0.0.0.0/0"], "drainTimeout": "0s"},
        "monitoring": {"ramFigure": "total"},
        "logging": {"backend": "store", "journalDir": "/j", "spoolSize": 65536,
            "instanceStoreSize": 262144, "storeSize": 262144, "retention": "0s",
            "syncPeriod": "0", "rateLines": 1, "rateBytes": 1024, "systemLogFiles": []},
        "journalAlerts": {"kernel": true}
    }"#,
    );
    assert_eq!(own.instances.runtime.as_deref(), Some(Path::new("/usr/bin/runc")));
    assert_eq!(own.instances.cgroup_parent.to_str(), Some("/a/b"));
    assert_eq!(own.instances.start_verdict, StartVerdict::Immediate);
    assert!(own.instances.keep_on_exit && own.instances.allow_root_uid);
    assert!(!own.instances.restart_on_secret_change);
    assert_eq!(own.instances.stop_timeout, Duration::ZERO);
    assert_eq!(own.instances.max_instances, 1);
    assert_eq!(own.instances.seccomp_profile.as_deref(), Some(Path::new("/p.json")));
    assert_eq!(own.instances.allowed_devices, [Path::new("/dev/mem")]);
    assert_eq!(own.instances.host_binds, ["bin", "opt"]);
    assert_eq!(own.pkcs11_module, "/lib/p.so");
    assert_eq!(own.cm_reconnect_timeout, Duration::from_secs(60));
    assert_eq!(own.disk_reserve_percent, 0);
    assert_eq!(own.install, Install { max_entries: 1, max_depth: 1000 });
    assert!(own.remote_node);
    expect![[r#"
        Network {
            vlan_parent: "eth0",
            dns_builtin: false,
            dns_fallback: [
                1.1.1.1,
                ::1,
            ],
            firewall: false,
            open_inbound: true,
            bandwidth_optional: true,
            traffic_period: Year,
            traffic_persist_period: 86400s,
            local_networks: [
                Cidr {
                    address: fd00::,
                    prefix: 8,
                },
                Cidr {
                    address: 0.0.0.0,
                    prefix: 0,
                },
            ],
            drain_timeout: 0ns,
        }
    "#]]
    .assert_debug_eq(&own.network);
    assert_eq!(own.monitoring.ram_figure, RamFigure::Total);
    expect![[r#"
        Logging {
            max_part_size_bytes: 524288,
            max_part_count: 20,
            backend: Store,
            journal_dir: "/j",
            spool_size_bytes: 65536,
            instance_store_size_bytes: 262144,
            store_size_bytes: 262144,
            retention: 0ns,
            sync_period: 0ns,
            rate_lines: 1,
            rate_bytes: 1024,
            system_log_files: [],
        }
    "#]]
    .assert_debug_eq(&own.logging);
    assert_eq!(own.journal_alerts.kernel, Some(true));
    for (word, expect) in [
        ("minute", TrafficPeriod::Minute),
        ("hour", TrafficPeriod::Hour),
        ("day", TrafficPeriod::Day),
        ("month", TrafficPeriod::Month),
        ("", TrafficPeriod::Day),
    ] {
        let text = format!(r#"{{"network":{{"trafficPeriod":"{word}"}}}}"#);
        assert_eq!(config(&text).network.traffic_period, expect);
    }
    for (word, expect) in
        [("confirm-new", StartVerdict::ConfirmNew), ("reference", StartVerdict::Reference)]
    {
        let text = format!(r#"{{"startVerdict":"{word}"}}"#);
        assert_eq!(config(&text).instances.start_verdict, expect);
    }
    let journal = config(r#"{"logging":{"backend":"journal"}}"#);
    assert_eq!(journal.logging.backend, LogBackend::Journal);
}

/// Every notation of spec/instances.md 19.1, through a key without narrow limits.
#[test]
fn durations() {
    let check = |value: &str, expect: Option<u64>| {
        let text = format!(r#"{{"logging":{{"retention":{value}}}}}"#);
        let got = decode(&text).ok().map(|(config, _)| config.logging.retention);
        assert_eq!(got, expect.map(Duration::from_secs), "{value}");
    };
    for (value, seconds) in [
        ("\"10s\"", 10),
        ("\"1m30s\"", 90),
        ("\"1.5h\"", 5400),
        ("\"0\"", 0),
        ("\"PT10S\"", 10),
        ("\"PT1M30S\"", 90),
        ("\"PT00:01:30\"", 90),
        ("\"P10M\"", 26_298_000),
        ("\"P2W\"", 1_209_600),
        ("\"P2D\"", 172_800),
        ("\"P1Y1M1W1DT1H1M1S\"", 34_882_261),
        ("\"P0001-01-01T01:01:01\"", 34_277_461),
        ("\"P\"", 0),
        ("\"PT\"", 0),
        ("\"30d\"", 2_592_000),
        ("5", 5),
        ("2000000000", 2),
        ("null", 604_800),
    ] {
        check(value, Some(seconds));
    }
    for value in [
        "\"-1s\"",
        "-1",
        "\"T1H1M1S\"",
        "\"P0001-01T01:01:01\"",
        "\"P0001-01-01T01:01\"",
        "\"PT1.5S\"",
        "\"pt1s\"",
        "\"10\"",
        "\"\"",
        "true",
        "[]",
        "{}",
        "\"P11Y\"",
    ] {
        check(value, None);
    }
}

#[test]
fn corrections_are_told() {
    let check = |text: &str, expect: &str| {
        let (_, warnings) = decode(text).unwrap();
        assert_eq!(warnings.join("\n"), expect, "{text}");
    };
    check(
        r#"{"certStorage":"/var/aos/crypt/sm/"}"#,
        r#"certStorage "/var/aos/crypt/sm/" is a path, but a certificate type is needed: using "sm""#,
    );
    check(
        r#"{"logging":{"maxPartSize":3932161}}"#,
        "logging.maxPartSize 3932161 is too much for a message: using 3932160",
    );
    check(r#"{"logging":{"maxPartSize":3932160}}"#, "");
    assert_eq!(config(r#"{"certStorage":"/var/aos/crypt/sm/"}"#).cert_type, "sm");
    assert_eq!(config(r#"{"certStorage":"online"}"#).cert_type, "online");
    check(
        r#"{"monitoring":{"source":"xentop"}}"#,
        r#"monitoring.source "xentop" is not supported: control groups are used"#,
    );
    check(r#"{"monitoring":{"source":"other"}}"#, "");
    check(
        r#"{"monitoring":{"pollPeriod":"500ms"}}"#,
        "monitoring.pollPeriod 500ms is not 1s to 1h0m0s: using 1s",
    );
    check(
        r#"{"monitoring":{"averageWindow":"1s"}}"#,
        "monitoring.averageWindow 1s is not 10s to 24h0m0s: using 10s",
    );
    let slow = r#"{"monitoring":{"pollPeriod":"5m"}}"#;
    check(slow, "");
    assert_eq!(config(slow).monitoring.average_window, Duration::from_secs(300));
    check(
        r#"{"journalAlerts":{"serviceAlertPriority":8,"systemAlertPriority":-1}}"#,
        "journalAlerts.serviceAlertPriority 8 is not 0 to 7: using 4\n\
        journalAlerts.systemAlertPriority -1 is not 0 to 7: using 3",
    );
    check(
        r#"{"hostBinds":["/bin","..","a/b",""]}"#,
        "hostBinds \"/bin\" is no name of a directory of /: ignored\n\
        hostBinds \"..\" is no name of a directory of /: ignored\n\
        hostBinds \"a/b\" is no name of a directory of /: ignored\n\
        hostBinds \"\" is no name of a directory of /: ignored",
    );
    check(
        r#"{"stopTimeout":2}"#,
        "stopTimeout 2 is a bare number, which each release reads in its own way: using 2s",
    );
    check(
        r#"{"monitoring":{"pollPeriod":35000000000}}"#,
        "monitoring.pollPeriod 35000000000 is a bare number, which each release reads in its own \
        way: using 35s",
    );
}

fn refused(text: &str) -> String {
    match decode(text) {
        Ok(_) => panic!("accepted: {text}"),
        Err(error) => chain(&error),
    }
}

#[test]
fn wrong_values_are_named() {
    let lines = |texts: &[&str]| texts.iter().map(|text| refused(text) + "\n").collect::<String>();
    let check = |texts: &[&str], expect: Expect| expect.assert_eq(&lines(texts));
    check(
        &[
            r#"{"workingDir":5}"#,
            r#"{"workingDir":"a\u0000b"}"#,
            r#"{"cmServerUrl":"a b:1"}"#,
            r#"{"cmServerUrl":["a:1"]}"#,
            r#"{"iamPublicServerUrl":"a\nb"}"#,
            r#"{"servicesPartLimit":101}"#,
            r#"{"servicesPartLimit":-1}"#,
            r#"{"layersPartLimit":40.0}"#,
            r#"{"layersPartLimit":"40"}"#,
            r#"{"serviceTtlDays":1e3}"#,
            r#"{"layerTtlDays":-1}"#,
            r#"{"hosts":{}}"#,
            r#"{"hosts":[{"ip":"x","hostname":"a"}]}"#,
            r#"{"hosts":[{"ip":"::1"}]}"#,
            r#"{"hosts":[{"ip":"::1","hostname":"a\n1.1.1.1 b"}]}"#,
            r#"{"hostBinds":[1]}"#,
            r#"{"remoteNode":1}"#,
            r#"{"serviceHealthCheckTimeout":"35"}"#,
            r#"{"migration":{"migrationPath":false}}"#,
            r#"{"Monitoring":{"PollPeriod":"10"}}"#,
            r#"{"monitoring":{"pollPeriod":"0s"}}"#,
            r#"{"monitoring":{"averageWindow":-5}}"#,
            r#"{"monitoring":{"sendPeriod":"-1s"}}"#,
            r#"{"monitoring":{"partitions":[{"types":"x"}]}}"#,
            r#"{"monitoring":[]}"#,
            r#"{"logging":{"maxPartSize":0}}"#,
            r#"{"logging":{"maxPartCount":0}}"#,
            r#"{"journalAlerts":{"serviceAlertPriority":"4"}}"#,
            r#"{"journalAlerts":{"filter":"x"}}"#,
        ],
        expect![[r#"
            workingDir: 5 is not allowed, expected a string
            workingDir: "a\0b" is not allowed, expected text without control characters
            cmServerUrl: "a b:1" is not allowed, expected host:port
            cmServerUrl: an array is not allowed, expected a string
            iamPublicServerUrl: "a\nb" is not allowed, expected text without control characters
            servicesPartLimit: 101 is not allowed, expected an integer from 0 to 100
            servicesPartLimit: -1 is not allowed, expected an integer from 0 to 100
            layersPartLimit: 40.0 is not allowed, expected an integer from 0 to 100
            layersPartLimit: "40" is not allowed, expected an integer from 0 to 100
            serviceTtlDays: 1000.0 is not allowed, expected an unsigned integer
            layerTtlDays: -1 is not allowed, expected an unsigned integer
            hosts: an object is not allowed, expected an array
            hosts[0].ip: "x" is not allowed, expected an IP address
            hosts[0].hostname is missing, expected a host name
            hosts[0].hostname: "a\n1.1.1.1 b" is not allowed, expected text without control characters
            hostBinds[0]: 1 is not allowed, expected a string
            remoteNode: 1 is not allowed, expected true or false
            serviceHealthCheckTimeout: "35" is not allowed, expected a duration such as "1m30s", "PT90S" or a number
            migration.migrationPath: false is not allowed, expected a string
            monitoring.pollPeriod: "10" is not allowed, expected a duration such as "1m30s", "PT90S" or a number
            monitoring.pollPeriod: "0s" is not allowed, expected a duration from 1s to 1h0m0s
            monitoring.averageWindow: -5 is not allowed, expected a duration from 10s to 24h0m0s
            monitoring.sendPeriod: "-1s" is not allowed, expected a duration from 1s to 24h0m0s
            monitoring.partitions[0].types: "x" is not allowed, expected an array
            monitoring: an array is not allowed, expected an object
            logging.maxPartSize: 0 is not allowed, expected an integer from 1 to 4294967295
            logging.maxPartCount: 0 is not allowed, expected an integer from 1 to 4294967295
            journalAlerts.serviceAlertPriority: "4" is not allowed, expected an integer
            journalAlerts.filter: "x" is not allowed, expected an array
        "#]],
    );
    check(
        &[
            r#"{"runtime":"crun"}"#,
            r#"{"cgroupParent":"a"}"#,
            r#"{"cgroupParent":"/"}"#,
            r#"{"cgroupParent":"/a/../b"}"#,
            r#"{"startVerdict":"Immediate"}"#,
            r#"{"keepInstancesOnExit":"yes"}"#,
            r#"{"stopTimeout":"2h"}"#,
            r#"{"stopTimeout":"-1s"}"#,
            r#"{"maxInstances":0}"#,
            r#"{"maxInstances":65536}"#,
            r#"{"allowRootUid":0}"#,
            r#"{"allowedDevices":["mem"]}"#,
            r#"{"allowedDevices":["/dev/null","/dev/../etc"]}"#,
            r#"{"cmReconnectTimeout":"0s"}"#,
            r#"{"diskReservePercent":51}"#,
            r#"{"install":{"maxEntries":0}}"#,
            r#"{"install":{"maxDepth":1001}}"#,
            r#"{"network":{"vlanParent":"sixteen-letters-"}}"#,
            r#"{"network":{"vlanParent":"a/b"}}"#,
            r#"{"network":{"dns":{"mode":"dnsmasq"}}}"#,
            r#"{"network":{"dns":{"fallback":["8.8.8.8","dns.google"]}}}"#,
            r#"{"network":{"dns":"none"}}"#,
            r#"{"network":{"firewall":"iptables"}}"#,
            r#"{"network":{"trafficPeriod":"week"}}"#,
            r#"{"network":{"trafficPersistPeriod":"500ms"}}"#,
            r#"{"network":{"localNetworks":["10.0.0.0"]}}"#,
            r#"{"network":{"localNetworks":["10.0.0.1/8"]}}"#,
            r#"{"network":{"localNetworks":["10.0.0.0/33"]}}"#,
            r#"{"network":{"drainTimeout":"25h"}}"#,
            r#"{"monitoring":{"ramFigure":"rss"}}"#,
            r#"{"logging":{"backend":"syslog"}}"#,
            r#"{"logging":{"spoolSize":65535}}"#,
            r#"{"logging":{"spoolSize":4194305}}"#,
            r#"{"logging":{"instanceStoreSize":262143}}"#,
            r#"{"logging":{"storeSize":1}}"#,
            r#"{"logging":{"rateLines":0}}"#,
            r#"{"logging":{"rateBytes":1023}}"#,
            r#"{"logging":{"systemLogFiles":"x"}}"#,
            r#"{"journalAlerts":{"kernel":"yes"}}"#,
        ],
        expect![[r#"
            runtime: "crun" is not allowed, expected an absolute path
            cgroupParent: "a" is not allowed, expected an absolute path
            cgroupParent: "/" is not allowed, expected an absolute path of a control group below the root
            cgroupParent: "/a/../b" is not allowed, expected an absolute path of a control group below the root
            startVerdict: "Immediate" is not allowed, expected one of confirm-new, immediate, reference
            keepInstancesOnExit: "yes" is not allowed, expected true or false
            stopTimeout: "2h" is not allowed, expected a duration from 0s to 1h0m0s
            stopTimeout: "-1s" is not allowed, expected a duration from 0s to 1h0m0s
            maxInstances: 0 is not allowed, expected an integer from 1 to 65535
            maxInstances: 65536 is not allowed, expected an integer from 1 to 65535
            allowRootUid: 0 is not allowed, expected true or false
            allowedDevices[0]: "mem" is not allowed, expected paths below /dev
            allowedDevices[1]: "/dev/../etc" is not allowed, expected paths below /dev
            cmReconnectTimeout: "0s" is not allowed, expected a duration from 1s to 1h0m0s
            diskReservePercent: 51 is not allowed, expected an integer from 0 to 50
            install.maxEntries: 0 is not allowed, expected an integer from 1 to 10000000
            install.maxDepth: 1001 is not allowed, expected an integer from 1 to 1000
            network.vlanParent: "sixteen-letters-" is not allowed, expected the name of a network interface
            network.vlanParent: "a/b" is not allowed, expected the name of a network interface
            network.dns.mode: "dnsmasq" is not allowed, expected one of builtin, none
            network.dns.fallback[1]: "dns.google" is not allowed, expected IP addresses
            network.dns: "none" is not allowed, expected an object
            network.firewall: "iptables" is not allowed, expected one of nft, none
            network.trafficPeriod: "week" is not allowed, expected one of minute, hour, day, month, year
            network.trafficPersistPeriod: "500ms" is not allowed, expected a duration from 1s to 24h0m0s
            network.localNetworks[0]: "10.0.0.0" is not allowed, expected networks such as "10.0.0.0/8"
            network.localNetworks[0]: "10.0.0.1/8" is not allowed, expected networks such as "10.0.0.0/8"
            network.localNetworks[0]: "10.0.0.0/33" is not allowed, expected networks such as "10.0.0.0/8"
            network.drainTimeout: "25h" is not allowed, expected a duration from 0s to 24h0m0s
            monitoring.ramFigure: "rss" is not allowed, expected one of anonymous, total
            logging.backend: "syslog" is not allowed, expected one of auto, journal, store
            logging.spoolSize: 65535 is not allowed, expected an integer from 65536 to 4194304
            logging.spoolSize: 4194305 is not allowed, expected an integer from 65536 to 4194304
            logging.instanceStoreSize: 262143 is not allowed, expected an integer from 262144 to 1099511627776
            logging.storeSize: 1 is not allowed, expected an integer from 262144 to 1099511627776
            logging.rateLines: 0 is not allowed, expected an integer from 1 to 4294967295
            logging.rateBytes: 1023 is not allowed, expected an integer from 1024 to 4294967295
            logging.systemLogFiles: "x" is not allowed, expected an array
            journalAlerts.kernel: "yes" is not allowed, expected true or false
        "#]],
    );
}

#[test]
fn files_that_cannot_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sm.cfg");
    let check = |content: Option<&[u8]>, expect: &str| {
        match content {
            Some(content) => crate::sys::fs::write_plain(&path, content, 0o600).unwrap(),
            None => drop(fs::remove_file(&path)),
        }
        let error = chain(&Config::load(&path).unwrap_err());
        let text = error.replace(path.to_str().unwrap(), "F");
        assert_eq!(text, expect);
        assert_eq!(text.lines().count(), 1);
    };
    let invalid = |text: &str| format!("configuration file F is not valid: {text}");
    check(None, "cannot read configuration file F: No such file or directory (os error 2)");
    check(Some(b"\xff"), "cannot read configuration file F: stream did not contain valid UTF-8");
    let syntax = |text: &str| invalid(&format!("malformed JSON: {text}"));
    check(Some(b""), &syntax("EOF while parsing a value at line 1 column 0"));
    check(Some(b"{"), &syntax("EOF while parsing an object at line 1 column 1"));
    check(Some(b"{\"a\":1,}"), &syntax("trailing comma at line 1 column 8"));
    check(Some(b"{} {}"), &syntax("trailing characters at line 1 column 4"));
    check(Some(b"// c\n{}"), &syntax("expected value at line 1 column 1"));
    check(Some(b"\xef\xbb\xbf{}"), &syntax("expected value at line 1 column 1"));
    check(Some(b"[]"), &invalid("document: an array is not allowed, expected an object"));
    check(
        Some(b"{\"Logging\":{\"maxPartSize\":true}}"),
        &invalid(
            "logging.maxPartSize: true is not allowed, expected an integer from 1 to 4294967295",
        ),
    );
    check(
        Some(&b" ".repeat(document::MAX_SIZE_BYTES + 1)),
        &invalid("document of 4194305 bytes is larger than 4194304"),
    );
    let endless = Config::load(Path::new("/dev/zero")).unwrap_err();
    assert!(chain(&endless).ends_with("document of 4194305 bytes is larger than 4194304"));
    let directory = Config::load(dir.path()).unwrap_err();
    assert!(chain(&directory).ends_with("Is a directory (os error 21)"));
}

#[test]
fn local_networks_are_few() {
    let file = |count: usize| {
        let networks = vec!["\"10.0.0.0/8\""; count].join(",");
        format!(r#"{{"network":{{"localNetworks":[{networks}]}}}}"#)
    };
    assert_eq!(config(&file(64)).network.local_networks.len(), 64);
    let expect = "network.localNetworks: a list of 65 is not allowed, expected at most 64 networks";
    assert_eq!(refused(&file(65)), expect);
}
