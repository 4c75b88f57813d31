//! Configurations of proxies that share requests between the GPU's engine and the CPU's, and send them to the CPU's when the
//! GPU's is away. A request that an engine has begun to compute is not sent to the other one: it would be computed twice, and
//! of a stream its client has a part already.

/// Where the GPU's engine listens.
pub const GPU: &str = "127.0.0.1:8000";
/// The port of [`GPU`].
pub const PORT: u16 = 8000;
/// Where the CPU's engine listens.
pub const CPU: &str = "127.0.0.1:8001";
/// Where the proxy listens.
pub const LISTEN: &str = "127.0.0.1:8080";

/// Who listens where, and what share of the requests goes to the GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct Places {
    /// Where clients connect to, as `host:port`.
    pub listen: String,
    /// The GPU's engine.
    pub gpu: String,
    /// The CPU's engine.
    pub cpu: String,
    /// The GPU's share in percent.
    pub share: u32,
}

impl Default for Places {
    /// On this machine, with a first share of 5%.
    fn default() -> Places {
        Places { listen: LISTEN.into(), gpu: GPU.into(), cpu: CPU.into(), share: 5 }
    }
}

/// A whole `nginx.conf`.
pub fn nginx(places: &Places) -> String {
    let Places { listen, gpu, cpu, share } = places;
    // nginx takes no share of 0%.
    let line = if *share == 0 { "# 1% gpu;".to_string() } else { format!("{share}% gpu;") };
    format!(
        "# Requests for two engines: a share of them for the GPU's, and the CPU's as its backup.
worker_processes auto;

events {{
    worker_connections 4096;
}}

http {{
    # The GPU's share; 100% is all of them, and none without this line.
    split_clients $request_id $engine {{
        {line}
        * cpu;
    }}

    upstream gpu {{
        # One failed connection keeps requests away for five seconds.
        server {gpu} max_fails=1 fail_timeout=5s;
        server {cpu} backup;
    }}

    upstream cpu {{
        server {cpu};
    }}

    server {{
        listen {listen};
        client_max_body_size 16m;

        location / {{
            proxy_pass http://$engine;
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header Connection \"\";
            proxy_set_header X-Request-Id $request_id;
            # Tokens are passed on as they come.
            proxy_buffering off;
            proxy_connect_timeout 1s;
            proxy_read_timeout 600s;
            # Only to an engine that has not begun: POST is sent on by `error` and `timeout` before it was sent to anyone.
            proxy_next_upstream error timeout;
            proxy_next_upstream_tries 2;
        }}
    }}
}}
"
    )
}

/// A whole `envoy.yaml`.
pub fn envoy(places: &Places) -> String {
    let [listen, gpu, cpu] = [&places.listen, &places.gpu, &places.cpu].map(|p| address(p));
    let (share, rest) = (places.share.min(100), 100 - places.share.min(100));
    // Of the endpoints of one cluster, those of priority 1 are the backup of those of priority 0.
    let endpoints = |list: &[&str]| {
        let each = |(priority, address): (usize, &&str)| {
            format!(
                "          - priority: {priority}\n            lb_endpoints: [{{endpoint: {{address: {address}}}}}]\n"
            )
        };
        list.iter().enumerate().map(each).collect::<String>()
    };
    let cluster = |name: &str, list: &[&str]| {
        format!(
            "    - name: {name}
      type: STRICT_DNS
      connect_timeout: 1s
      health_checks:
        - timeout: 2s
          interval: 2s
          unhealthy_threshold: 2
          healthy_threshold: 1
          http_health_check: {{path: /health}}
      outlier_detection:
        consecutive_local_origin_failure: 1
        split_external_local_origin_errors: true
        base_ejection_time: 5s
        max_ejection_percent: 100
      load_assignment:
        cluster_name: {name}
        endpoints:
{}",
            endpoints(list)
        )
    };
    format!(
        "# Requests for two engines: a share of them for the GPU's, and the CPU's as its backup.
static_resources:
  listeners:
    - name: engines
      address: {listen}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: engines
                # An answer may take long.
                stream_idle_timeout: 600s
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config:
                      \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
                route_config:
                  virtual_hosts:
                    - name: engines
                      domains: [\"*\"]
                      routes:
                        - match: {{prefix: /}}
                          route:
                            timeout: 600s
                            # Only to an engine that has not begun.
                            retry_policy:
                              retry_on: connect-failure
                              num_retries: 1
                              retry_priority:
                                name: envoy.retry_priorities.previous_priorities
                                typed_config:
                                  \"@type\": type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig
                                  update_frequency: 1
                            weighted_clusters:
                              clusters:
                                # The GPU's share; the two make 100.
                                - {{name: gpu, weight: {share}}}
                                - {{name: cpu, weight: {rest}}}
  clusters:
{}{}",
        cluster("gpu", &[&gpu, &cpu]),
        cluster("cpu", &[&cpu])
    )
}

fn address(place: &str) -> String {
    let (host, port) = place.rsplit_once(':').unwrap_or((place, "80"));
    format!("{{socket_address: {{address: \"{host}\", port_value: {port}}}}}")
}
