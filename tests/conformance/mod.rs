//! The standards, clause by clause, over real sockets: each test names the normative statements it is about.

mod auth;
mod connect;
mod data;
mod packet;
mod peer;
mod publish;
mod reader;
mod state;
mod statements;
mod subscribe;
mod websocket;
