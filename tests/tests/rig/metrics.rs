//! The file of metrics beside real packets.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use firewall_tests::rig::agent::{Agent, PATIENCE};
use firewall_tests::traffic::probe::{Outcome, Probe, SILENCE};

use super::world::*;

#[test]
fn metrics_say_what_counters_say_of_real_packets() -> Result<()> {
    let world = World::new("metrics")?;
    let path = world.rig.directory().join("firewall.prom");
    let agent = Agent::start(&world.rig, &["--metrics", &path.display().to_string()])?;
    agent.wait_for_vif(world.client.vif())?;
    world.put(&agent, &[tcp_443()])?;
    let from = world.client.namespace();
    for (client, server, prohibited) in
        [(world.v4, SERVER4, PROHIBITED4), (world.v6, SERVER6, PROHIBITED6)]
    {
        assert_eq!(Probe::tcp(from, SocketAddr::new(server, 443)).run(SILENCE)?, Outcome::Accepted);
        assert_eq!(Probe::udp(from, SocketAddr::new(server, 443)).run(SILENCE)?, prohibited);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = agent.client(client)?;
            let [accepted, denied] =
                [status.rules[0].counter, status.default_counter].map(|counter| counter.packets);
            ensure!(accepted > 0 && denied > 0, "{status:?}");
            let of = |verdict, packets| {
                format!(
                    "firewall_agent_client_packets_total{{client=\"{client}\",vif=\"vif12.0\",\
                     verdict=\"{verdict}\"}} {packets}\n"
                )
            };
            let expected = [of("accept", accepted), of("deny", denied), of("audit", 0)];
            let text = fs::read_to_string(&path).unwrap_or_default();
            if expected.iter().all(|line| text.contains(line)) {
                break;
            }
            ensure!(Instant::now() < deadline, "never {expected:?}: {text}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}
