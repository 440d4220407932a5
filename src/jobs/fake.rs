//! Recording fakes of all ports for the tests of the scripts.
