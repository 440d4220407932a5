//! Packages on disk and their rows, with the real daemon: whatever happens to it, both agree.

mod kills;
mod scene;
mod cases;
mod hardening;
mod hostile;
mod injection;
mod rights;
mod takeover;
mod waiting;
