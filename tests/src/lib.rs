//! The harness of the tests that run the real leaktrace binary.
