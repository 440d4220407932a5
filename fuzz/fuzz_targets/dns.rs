#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| aos_servicemanager_fuzz::network::fuzzing::dns(input));
