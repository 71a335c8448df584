//! The HTTP listener: binds first, so that a port in use is an error at start, then serves on its own thread.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::middleware::from_fn;
use actix_web::web::{self, Data, PayloadConfig, QueryConfig};
use actix_web::{App, rt};

use super::backend::Backend;
use super::error::BodyMax;
use super::guard::{self, Guard};
use super::{admin, dataplane, error, ledger, node, publish, shadows};
use crate::config::{ListenHttp, TOKEN_CHARS_MIN, first_line};

/// The backend as handlers see it.
pub(super) type Shared = Arc<dyn Backend>;

/// A client has this long to send its request's head; slower ones hold a connection for nothing.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// An idle connection is kept this long.
pub const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Connections the kernel keeps waiting while the thread is busy.
const BACKLOG: u32 = 128;
/// Seconds requests under way have to end when the node stops.
const SHUTDOWN_S: u64 = 3;

/// Why the HTTP API did not start. Nothing listens then.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The port is taken, or the address is not this machine's.
    #[error("cannot listen for HTTP on {bind}: {source}")]
    Bind {
        /// The address asked for.
        bind: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// It would be open to everybody.
    #[error(
        "HTTP on {0} can be reached from other machines and has no listen.http.token_file; it was not started"
    )]
    Open(SocketAddr),
    /// The token cannot be used.
    #[error("cannot use the token in {file}: {why}; the HTTP API was not started")]
    Token {
        /// Where it should stand.
        file: String,
        /// What is wrong.
        why: String,
    },
    /// The thread or its runtime did not come up.
    #[error("cannot start the HTTP thread: {0}")]
    Thread(std::io::Error),
}

/// A running HTTP listener. Stops when dropped.
#[derive(Debug)]
pub struct HttpServer {
    address: SocketAddr,
    handle: ServerHandle,
    thread: Option<JoinHandle<()>>,
}

impl HttpServer {
    /// Starts to listen.
    ///
    /// # Errors
    /// [`HttpError`]; nothing listens then.
    pub fn start(config: &ListenHttp, backend: Arc<dyn Backend>) -> Result<Self, HttpError> {
        let guard = guard_for(config)?;
        let bind = config.bind;
        let listener =
            TcpListener::bind(bind).map_err(|source| HttpError::Bind { bind, source })?;
        let address = listener.local_addr().map_err(|source| HttpError::Bind { bind, source })?;
        let config = config.clone();
        let (started, starting) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("http".into())
            .spawn(move || serve(&config, guard, backend, listener, &started))
            .map_err(HttpError::Thread)?;
        let ended = || HttpError::Thread(std::io::Error::other("it ended before it listened"));
        let handle = starting.recv().map_err(|_| ended())?.map_err(HttpError::Thread)?;
        Ok(Self { address, handle, thread: Some(thread) })
    }

    /// Where it listens, with the port the system chose when 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops listening and waits until requests under way have ended, a few seconds at most.
    pub async fn stop(mut self) {
        self.handle.stop(true).await;
        if let Some(thread) = self.thread.take() {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        if self.thread.is_some() {
            // Sends the stop when called; the future would only wait for its end.
            drop(self.handle.stop(false));
        }
    }
}

fn guard_for(config: &ListenHttp) -> Result<Guard, HttpError> {
    let Some(file) = &config.token_file else {
        return if config.bind.ip().is_loopback() {
            Ok(Guard::Loopback)
        } else {
            Err(HttpError::Open(config.bind))
        };
    };
    let refused = |why: String| HttpError::Token { file: file.display().to_string(), why };
    let token = first_line(file).map_err(|cause| refused(cause.to_string()))?;
    if token.chars().count() < TOKEN_CHARS_MIN {
        return Err(refused(format!("it has fewer than {TOKEN_CHARS_MIN} characters")));
    }
    Ok(Guard::token(&token))
}

type Started = mpsc::SyncSender<std::io::Result<ServerHandle>>;

fn serve(
    config: &ListenHttp,
    guard: Guard,
    backend: Shared,
    listener: TcpListener,
    started: &Started,
) {
    let body_max = config.body_max_bytes;
    let (guard, backend) = (Data::new(guard), Data::new(backend));
    let server = actix_web::HttpServer::new(move || {
        App::new()
            .app_data(guard.clone())
            .app_data(backend.clone())
            .app_data(PayloadConfig::new(body_max))
            .app_data(Data::new(BodyMax(body_max)))
            .app_data(QueryConfig::default().error_handler(error::query))
            .wrap(from_fn(guard::check))
            .configure(routes)
            .default_service(web::to(error::not_found))
    })
    .workers(1)
    .backlog(BACKLOG)
    .max_connections(config.connections_max)
    .client_request_timeout(HEAD_TIMEOUT)
    .keep_alive(KEEP_ALIVE)
    .shutdown_timeout(SHUTDOWN_S)
    .disable_signals()
    .listen(listener);
    let ended = match server {
        Ok(server) => rt::System::new().block_on(async move {
            let running = server.run();
            let _ = started.send(Ok(running.handle()));
            running.await
        }),
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    if let Err(error) = ended {
        tracing::error!(%error, "the HTTP listener stopped; devices are still served");
    }
}

fn admin_routes(app: &mut web::ServiceConfig) {
    let only_get = || error::method_not_allowed("GET");
    let only_post = || error::method_not_allowed("POST");
    app.service(web::resource("/api/v1/clients").get(admin::clients).default_service(only_get()))
        .service(web::resource("/api/v1/client").get(admin::client).default_service(only_get()))
        .service(
            web::resource("/api/v1/client/kick").post(admin::kick).default_service(only_post()),
        )
        .service(
            web::resource("/api/v1/client/queue").get(admin::queue).default_service(only_get()),
        )
        .service(
            web::resource("/api/v1/client/queue/messages")
                .get(admin::queue_messages)
                .default_service(only_get()),
        )
        .service(
            web::resource("/api/v1/client/queue/drain")
                .post(admin::queue_drain)
                .default_service(only_post()),
        )
        .service(
            web::resource("/api/v1/redirect")
                .get(admin::redirection)
                .post(admin::redirect)
                .delete(admin::serve_again)
                .default_service(error::method_not_allowed("GET, POST, DELETE")),
        )
        .service(
            web::resource("/api/v1/cluster/member")
                .delete(admin::forget_peer)
                .default_service(error::method_not_allowed("DELETE")),
        )
        .service(web::resource("/api/v1/why").get(admin::why).default_service(only_get()))
        .service(
            web::resource("/api/v1/traces")
                .get(admin::traces)
                .post(admin::trace_start)
                .default_service(error::method_not_allowed("GET, POST")),
        )
        .service(
            web::resource("/api/v1/trace")
                .get(admin::trace_read)
                .delete(admin::trace_stop)
                .default_service(error::method_not_allowed("GET, DELETE")),
        )
        .service(
            web::resource("/api/v1/retained")
                .get(admin::retained)
                .delete(admin::retained_remove)
                .default_service(error::method_not_allowed("GET, DELETE")),
        );
}

/// Paths of the AWS IoT data plane.
fn data_plane_routes(app: &mut web::ServiceConfig) {
    let only_get = || error::method_not_allowed("GET");
    app.service(
        web::resource("/topics/{topic:.*}")
            .post(dataplane::publish)
            .default_service(error::method_not_allowed("POST")),
    )
    .service(
        web::resource("/retainedMessage").get(dataplane::list_retained).default_service(only_get()),
    )
    .service(
        web::resource("/retainedMessage/{topic:.*}")
            .get(dataplane::retained)
            .default_service(only_get()),
    )
    .service(
        web::resource("/connections/{clientId}")
            .delete(dataplane::disconnect)
            .default_service(error::method_not_allowed("DELETE")),
    )
    .service(
        web::resource("/api/things/shadow/ListNamedShadowsForThing/{thing}")
            .get(shadows::list_named)
            .default_service(only_get()),
    )
    .service(
        web::resource("/things/{thing}/shadow")
            .get(shadows::get)
            .post(shadows::update)
            .delete(shadows::delete)
            .default_service(error::method_not_allowed("GET, POST, DELETE")),
    );
}

fn routes(app: &mut web::ServiceConfig) {
    let only_get = || error::method_not_allowed("GET");
    admin_routes(app);
    data_plane_routes(app);
    app.service(web::resource("/healthz").get(node::healthz).default_service(only_get()))
        .service(web::resource("/metrics").get(node::prometheus).default_service(only_get()))
        .service(web::resource("/api/v1/actors").get(node::actors).default_service(only_get()))
        .service(web::resource("/api/v1/cluster").get(node::cluster).default_service(only_get()))
        .service(web::resource("/api/v1/bridges").get(node::bridges).default_service(only_get()))
        .service(web::resource("/api/v1/stats").get(node::stats).default_service(only_get()))
        .service(web::resource("/api/v1/ledger").get(ledger::ledger).default_service(only_get()))
        .service(
            web::resource("/api/v1/reload")
                .post(node::reload)
                .default_service(error::method_not_allowed("POST")),
        )
        .service(web::resource("/api/v1/shadows").get(shadows::list).default_service(only_get()))
        .service(
            web::resource("/api/v1/shadow/history")
                .get(shadows::history)
                .default_service(only_get()),
        )
        .service(web::resource("/api/v1/shadow/why").get(shadows::why).default_service(only_get()))
        .service(
            web::resource("/api/v1/shadows/home")
                .post(shadows::move_home)
                .default_service(error::method_not_allowed("POST")),
        )
        .service(
            web::resource("/api/v1/publish")
                .post(publish::publish)
                .default_service(error::method_not_allowed("POST")),
        );
}

#[cfg(test)]
mod tests;
