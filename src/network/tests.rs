//! Tests of the net thread against the real kernel, in namespaces of their own.
