//! An IAM of generation v5: one server with a public and one with a protected port.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use aos_servicemanager::iam::wire::v5::common::InstanceIdent;
use aos_servicemanager::iam::wire::v5::iamanager::{
    CertInfo, GetCertRequest, NodeInfo, Permissions, PermissionsRequest, PermissionsResponse,
    RegisterInstanceRequest, RegisterInstanceResponse, SubscribeCertChangedRequest,
    UnregisterInstanceRequest,
};
use aos_servicemanager::iam::wire::version::version::APIVersion;
use futures_channel::mpsc::unbounded;
use futures_util::{SinkExt, StreamExt};
use grpcio::{
    Environment, MethodType, RpcContext, RpcStatus, RpcStatusCode, Server, ServerStreamingSink,
    Service, ServiceBuilder, UnarySink, WriteFlags,
};
use protobuf::Message;
use protobuf::well_known_types::empty::Empty;

use super::certs::Identity;
use super::server::{self, Endpoint, Error, Out, Outbox, RawMethod, lock};

const VERSION: RawMethod = unary("/iamanager.IAMVersionService/GetAPIVersion");
const NODE_INFO: RawMethod = unary("/iamanager.v5.IAMPublicService/GetNodeInfo");
const CERT: RawMethod = unary("/iamanager.v5.IAMPublicService/GetCert");
const CERT_CHANGED: RawMethod = server::method(
    MethodType::ServerStreaming,
    "/iamanager.v5.IAMPublicService/SubscribeCertChanged",
);
const PERMISSIONS: RawMethod = unary("/iamanager.v5.IAMPublicPermissionsService/GetPermissions");
const REGISTER: RawMethod = unary("/iamanager.v5.IAMPermissionsService/RegisterInstance");
const UNREGISTER: RawMethod = unary("/iamanager.v5.IAMPermissionsService/UnregisterInstance");

const fn unary(name: &'static str) -> RawMethod {
    server::method(MethodType::Unary, name)
}

/// What was asked.
#[derive(Clone, PartialEq, Debug)]
pub enum IamEvent {
    VersionRead,
    NodeInfoRead,
    CertRead { kind: String },
    Subscribed { kind: String },
    Registered { instance: InstanceIdent, servers: Vec<String>, secret: String },
    Unregistered { instance: InstanceIdent },
    PermissionsRead { secret: String },
}

/// How a method fails.
#[derive(Clone, Debug)]
pub enum Fault {
    Status(RpcStatusCode, String),
    /// It never answers.
    Hang,
}

/// Both servers; dropping them ends all calls.
pub struct IamServer {
    env: Arc<Environment>,
    public: Endpoint,
    protected: Endpoint,
    servers: Vec<Server>,
    shared: Arc<Shared>,
}

impl std::fmt::Debug for IamServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IamServer")
            .field("public", &self.public)
            .field("protected", &self.protected)
            .finish_non_exhaustive()
    }
}

struct Shared {
    state: Mutex<State>,
    on_event: Box<dyn Fn(IamEvent) + Send + Sync>,
}

/// Service, subject and index.
type Key = (String, String, u64);

struct Registration {
    secret: String,
    /// By functional server.
    permissions: HashMap<String, Permissions>,
}

struct State {
    node: NodeInfo,
    cert_url: String,
    key_url: String,
    subscribers: Vec<(String, Outbox)>,
    registrations: HashMap<Key, Registration>,
    secrets_made: u64,
    /// By the last part of the method's path.
    faults: HashMap<String, Fault>,
    /// Calls that are never answered.
    hanging: Vec<UnarySink<Vec<u8>>>,
}

impl IamServer {
    /// Starts to listen on both ports and hands out the certificate of `client`. `on_event` is
    /// called on the servers' thread and must not block.
    pub fn start(
        public: Endpoint,
        protected: Endpoint,
        node: NodeInfo,
        client: &Identity,
        on_event: impl Fn(IamEvent) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let state = State {
            node,
            cert_url: client.cert_url(),
            key_url: client.key_url(),
            subscribers: Vec::new(),
            registrations: HashMap::new(),
            secrets_made: 0,
            faults: HashMap::new(),
            hanging: Vec::new(),
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), on_event: Box::new(on_event) });
        let env = server::environment();
        let mut iam = Self { env, public, protected, servers: Vec::new(), shared };
        iam.up()?;
        Ok(iam)
    }

    pub fn public_port(&self) -> u16 {
        self.public.port
    }

    pub fn protected_port(&self) -> u16 {
        self.protected.port
    }

    /// Listens again on the same ports. Nothing to do when it does.
    pub fn up(&mut self) -> Result<(), Error> {
        if !self.servers.is_empty() {
            return Ok(());
        }
        let public = public_services(&self.shared);
        let protected = vec![protected_service(&self.shared)];
        let (server, port) = server::listen(&self.env, &self.public, public)?;
        self.public.port = port;
        self.servers.push(server);
        let (server, port) = server::listen(&self.env, &self.protected, protected)?;
        self.protected.port = port;
        self.servers.push(server);
        Ok(())
    }

    /// Ends all calls and closes the ports. Registrations are lost, as those of a real IAM.
    pub fn down(&mut self) {
        self.servers.drain(..).for_each(server::stop);
        let mut state = lock(&self.shared.state);
        state.subscribers.clear();
        state.registrations.clear();
        state.hanging.clear();
    }

    /// Hands out another certificate and tells the subscribers.
    pub fn set_cert(&self, new_cert_url: String, new_key_url: String) {
        let mut state = lock(&self.shared.state);
        state.cert_url = new_cert_url;
        state.key_url = new_key_url;
        let State { subscribers, cert_url, key_url, .. } = &mut *state;
        subscribers.retain(|(kind, outbox)| {
            let message = encode(&cert_info(kind, cert_url, key_url));
            outbox.unbounded_send(Out::Message(message)).is_ok()
        });
    }

    /// Ends all certificate subscriptions with a status.
    pub fn break_subscriptions(&self, code: RpcStatusCode, text: &str) {
        for (_, outbox) in lock(&self.shared.state).subscribers.drain(..) {
            let status = RpcStatus::with_message(code, text.to_owned());
            let _ = outbox.unbounded_send(Out::End(status));
        }
    }

    /// Changes the node info.
    pub fn set_node(&self, change: impl FnOnce(&mut NodeInfo)) {
        change(&mut lock(&self.shared.state).node);
    }

    /// Sets or clears how a method (`GetCert`, …) fails.
    pub fn set_fault(&self, method: &str, fault: Option<Fault>) {
        let mut state = lock(&self.shared.state);
        match fault {
            Some(fault) => state.faults.insert(method.to_owned(), fault),
            None => state.faults.remove(method),
        };
    }

    /// Secret of a registered instance.
    pub fn secret(&self, service: &str, subject: &str, instance: u64) -> Option<String> {
        let key = (service.to_owned(), subject.to_owned(), instance);
        lock(&self.shared.state).registrations.get(&key).map(|r| r.secret.clone())
    }
}

impl Drop for IamServer {
    fn drop(&mut self) {
        self.down();
    }
}

fn public_services(shared: &Arc<Shared>) -> Vec<Service> {
    let services = ServiceBuilder::new();
    let services = add(services, &VERSION, shared, |shared, _: Empty| {
        (shared.on_event)(IamEvent::VersionRead);
        let mut version = APIVersion::new();
        version.version = 5;
        Ok(version)
    });
    let services = add(services, &NODE_INFO, shared, |shared, _: Empty| {
        (shared.on_event)(IamEvent::NodeInfoRead);
        Ok(lock(&shared.state).node.clone())
    });
    let services = add(services, &CERT, shared, |shared, request: GetCertRequest| {
        (shared.on_event)(IamEvent::CertRead { kind: request.type_.clone() });
        let state = lock(&shared.state);
        Ok(cert_info(&request.type_, &state.cert_url, &state.key_url))
    });
    let services = add(services, &PERMISSIONS, shared, permissions);
    let shared = shared.clone();
    let services =
        services.add_server_streaming_handler(&CERT_CHANGED, move |context, bytes, tx| {
            subscribe(&shared, &context, &bytes, tx);
        });
    vec![services.build()]
}

fn protected_service(shared: &Arc<Shared>) -> Service {
    let services = add(ServiceBuilder::new(), &REGISTER, shared, register);
    add(services, &UNREGISTER, shared, unregister).build()
}

/// Adds a unary method that is answered at once, unless a fault is set for it.
fn add<Q: Message, R: Message>(
    services: ServiceBuilder,
    method: &'static RawMethod,
    shared: &Arc<Shared>,
    answer: fn(&Shared, Q) -> Result<R, RpcStatus>,
) -> ServiceBuilder {
    let shared = shared.clone();
    let name = method.name.rsplit('/').next().unwrap_or_default();
    services.add_unary_handler(method, move |context: RpcContext<'_>, bytes: Vec<u8>, sink| {
        let fault = lock(&shared.state).faults.get(name).cloned();
        let result = match fault {
            Some(Fault::Hang) => {
                lock(&shared.state).hanging.push(sink);
                return;
            }
            Some(Fault::Status(code, text)) => Err(RpcStatus::with_message(code, text)),
            None => Q::parse_from_bytes(&bytes)
                .map_err(|e| {
                    RpcStatus::with_message(RpcStatusCode::INVALID_ARGUMENT, e.to_string())
                })
                .and_then(|request| answer(&shared, request)),
        };
        let done = match result {
            Ok(message) => sink.success(encode(&message)),
            Err(status) => sink.fail(status),
        };
        context.spawn(async move {
            let _ = done.await; // the client may have gone
        });
    })
}

fn subscribe(
    shared: &Arc<Shared>,
    context: &RpcContext<'_>,
    bytes: &[u8],
    mut tx: ServerStreamingSink<Vec<u8>>,
) {
    let kind = SubscribeCertChangedRequest::parse_from_bytes(bytes).unwrap_or_default().type_;
    (shared.on_event)(IamEvent::Subscribed { kind: kind.clone() });
    let (outbox, mut inbox) = unbounded();
    let mut state = lock(&shared.state);
    if let Some(Fault::Status(code, text)) = state.faults.get("SubscribeCertChanged").cloned() {
        let _ = outbox.unbounded_send(Out::End(RpcStatus::with_message(code, text)));
    }
    state.subscribers.push((kind, outbox));
    drop(state);
    context.spawn(async move {
        while let Some(out) = inbox.next().await {
            match out {
                Out::Message(bytes) => {
                    if tx.send((bytes, WriteFlags::default())).await.is_err() {
                        return;
                    }
                }
                Out::End(status) => {
                    let _ = tx.fail(status).await;
                    return;
                }
            }
        }
        let _ = tx.close().await;
    });
}

fn register(
    shared: &Shared,
    request: RegisterInstanceRequest,
) -> Result<RegisterInstanceResponse, RpcStatus> {
    let instance = request.instance.clone().unwrap_or_default();
    let mut servers: Vec<String> = request.permissions.keys().cloned().collect();
    servers.sort();
    let mut state = lock(&shared.state);
    let State { registrations, secrets_made, .. } = &mut *state;
    // A second registration gets the old secret and keeps the old permissions.
    let registration = registrations.entry(key(&instance)).or_insert_with(|| {
        *secrets_made += 1;
        let secret = format!("secret-{secrets_made}");
        Registration { secret, permissions: request.permissions.clone() }
    });
    let secret = registration.secret.clone();
    drop(state);
    (shared.on_event)(IamEvent::Registered { instance, servers, secret: secret.clone() });
    let mut response = RegisterInstanceResponse::new();
    response.secret = secret;
    Ok(response)
}

fn unregister(shared: &Shared, request: UnregisterInstanceRequest) -> Result<Empty, RpcStatus> {
    let instance = request.instance.clone().unwrap_or_default();
    let removed = lock(&shared.state).registrations.remove(&key(&instance));
    (shared.on_event)(IamEvent::Unregistered { instance });
    let missing = || RpcStatus::with_message(RpcStatusCode::INTERNAL, "not found".to_owned());
    removed.map(|_| Empty::new()).ok_or_else(missing)
}

fn permissions(
    shared: &Shared,
    request: PermissionsRequest,
) -> Result<PermissionsResponse, RpcStatus> {
    (shared.on_event)(IamEvent::PermissionsRead { secret: request.secret.clone() });
    let state = lock(&shared.state);
    let found = state.registrations.iter().find(|(_, r)| r.secret == request.secret);
    let Some(((service, subject, index), registration)) = found else {
        return Err(RpcStatus::with_message(RpcStatusCode::INTERNAL, "not found".to_owned()));
    };
    let mut instance = InstanceIdent::new();
    instance.service_id.clone_from(service);
    instance.subject_id.clone_from(subject);
    instance.instance = *index;
    let mut response = PermissionsResponse::new();
    response.instance = Some(instance).into();
    response.permissions =
        registration.permissions.get(&request.functional_server_id).cloned().into();
    Ok(response)
}

fn key(instance: &InstanceIdent) -> Key {
    (instance.service_id.clone(), instance.subject_id.clone(), instance.instance)
}

fn cert_info(kind: &str, cert_url: &str, key_url: &str) -> CertInfo {
    let mut info = CertInfo::new();
    info.type_ = kind.to_owned();
    info.cert_url = cert_url.to_owned();
    info.key_url = key_url.to_owned();
    info
}

fn encode(message: &impl Message) -> Vec<u8> {
    message.write_to_bytes().unwrap_or_default() // fails for missing proto2 fields only
}
