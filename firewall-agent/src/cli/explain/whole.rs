//! All that is known about one packet, put together.
//! Never asks anybody.

use firewall_common::packet::Frame;
use firewall_common::verdict::{Decision, Reason, Verdict};
use firewall_core::connection::Flow;
use firewall_core::told::SCHEMA;
use firewall_core::told::explanation::{Explained, Explanation, Judgement, Outcome};
use firewall_core::told::gateway::PacketInGateway;

use super::kernel::connection;
use super::subject::Subject;

/// Puts together what agent, kernel and connection tracking say.
pub(super) fn whole(
    subject: &Subject,
    agent: Option<Explanation>,
    agent_problem: Option<&str>,
    kernel: Result<(Judgement, Option<PacketInGateway>), String>,
    flows: &Result<Vec<Flow>, String>,
) -> Explained {
    let packet = subject.packet();
    // Of a frame that holds no packet nothing has to be looked up.
    let by_itself = match &subject.frame {
        Err(reason) => Decision::stray(Verdict::Drop, *reason),
        Ok(Frame::Arp { .. }) => Decision::stray(Verdict::Pass, Reason::Arp),
        Ok(Frame::Ip(_)) => Decision::stray(Verdict::Drop, Reason::UnknownSource),
    };
    let (kernel, gateway, kernel_problem) = match kernel {
        Ok((judgement, gateway)) => (Some(judgement), gateway, None),
        Err(why) => (None, None, Some(why)),
    };
    let gateway = agent.as_ref().map_or(gateway, |it| it.gateway);
    let judgement = agent.as_ref().map(|it| &it.judgement).or(kernel.as_ref());
    let judgement = judgement.cloned().unwrap_or_else(|| Judgement::from(&by_itself));
    let (connection, connection_problem) = match (flows, &packet) {
        (Err(why), _) => (None, Some(why.clone())),
        (Ok(flows), Some(packet)) => (connection(flows, packet), None),
        (Ok(_), None) => (None, None),
    };
    let to_client = agent.as_ref().is_some_and(|it| it.to_client);
    let is_first_fragment = packet.is_some_and(|it| it.first_fragment);
    let agree =
        agent.as_ref().zip(kernel.as_ref()).map(|(agent, kernel)| agent.judgement == *kernel);
    Explained {
        schema: SCHEMA,
        client: subject.client,
        name: subject.name.clone(),
        packet,
        outcome: match gateway {
            Some(gateway) => Outcome::in_gateway(&judgement, gateway, is_first_fragment),
            None => Outcome::of(&judgement, connection, to_client, is_first_fragment),
        },
        gateway,
        judgement,
        agent,
        agent_problem: agent_problem.map(str::to_owned),
        kernel,
        kernel_problem,
        agree,
        connection,
        connection_problem,
    }
}
