//! The one integration-test binary; each module is a level or a group of scenarios.

mod sim;
