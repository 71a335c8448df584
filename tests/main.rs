//! End-to-end stories: nodes in this process and as processes, real sockets, clients other people wrote.

mod support;

mod actors;
mod admin;
mod bridge;
mod bridge_links;
mod clients;
mod cluster;
mod conformance;
mod dev;
mod durability;
mod expiry;
mod full_disk;
mod kills;
mod lab;
mod ledger;
mod limits;
mod listeners;
mod overload;
mod publish;
mod qos;
mod retained;
mod rights;
mod scram;
mod shadow;
mod shadow_api;
mod shadow_homes;
mod shadow_people;
mod shadow_policies;
mod share_groups;
mod shared;
mod sys_topics;
mod takeover;
mod tidy;
mod why;
mod will;
