//! What the configuration means to the two doors: MQTT and HTTP.

use std::sync::Arc;

use actors::shell::LivePolicy;

use super::ServeError;
use crate::config::NodeConfig;
use crate::gateway::{Gates, GatewayConfig, Limits, OpenOnLoopback, Registry};
use crate::http::{HttpConfig, Token};

pub fn gateway_config(
    config: &NodeConfig,
    policy: LivePolicy,
    registry: Arc<Registry>,
    gates: Arc<Gates>,
) -> GatewayConfig {
    let limits = &config.limits;
    GatewayConfig {
        listen: config.listen.mqtt,
        listen_ws: config.listen.ws,
        ws_origins: config.listen.ws_origins.clone(),
        limits: Limits {
            connections_max: limits.connections_max,
            connect_timeout: limits.connect_timeout,
            packet_bytes_max: u32::try_from(limits.packet_bytes_max).unwrap_or(u32::MAX),
            receive_maximum: limits.receive_maximum,
            children_max: limits.gateway_children_max,
            node_in_flight_bytes_max: limits.inflight_bytes_max,
            buffer_bytes_max: limits.buffer_bytes_max,
            slow_reader_timeout: limits.slow_reader_timeout,
            ..Limits::default()
        },
        policy,
        // The only mode there is, and `config` refuses other than loopback addresses in it.
        authenticator: Arc::new(OpenOnLoopback),
        registry,
        gates,
    }
}

/// # Errors
/// `Internal`: `config` accepted what the HTTP server does not.
pub fn http_config(config: &NodeConfig) -> Result<HttpConfig, ServeError> {
    let text = String::from_utf8_lossy(&config.security.operator_token.0);
    let token = Token::new(text).ok_or_else(|| ServeError::internal("the operator token", "cannot be sent"))?;
    let limits = &config.limits;
    Ok(HttpConfig {
        connections_max: limits.http_connections_max,
        event_subscribers_max: limits.event_subscribers_max,
        answer_bytes_max: limits.http_answer_bytes_max,
        slow_reader_timeout: limits.slow_reader_timeout,
        body_bytes_max: limits.http_body_bytes_max,
        deadline: limits.http_request_deadline,
        ..HttpConfig::new(config.listen.http, token)
    })
}
