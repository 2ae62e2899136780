//! The bridge against the real programs, and against scripts of what they would rarely do.

mod agent;
mod common;
mod connect;
mod graph;
mod jobs;
mod scripted;
