//! Rules of clients by address, and what they come to: rules of which nothing is known: waiting;
//! rules that cannot be used: blocked; else a policy.
//! Never knows who is there, or what the kernel has in force.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::events::{Installation, Notice};
use crate::rules::check::{self, ProvedPolicy};
use crate::rules::compile;
use crate::rules::question::{Addresses, Question};
use crate::rules::resolve::{self, ResolvedRuleset, Surroundings};
use crate::rules::source::SourceError;
use crate::rules::{Destination, Family, Ruleset, relevant, wider};
use crate::told::status::ProblemStatus;
use crate::tor::{Access, Each};

/// What a source says of a client's rules.
pub(super) type Read = Result<Ruleset, SourceError>;

/// What a client's rules come to.
#[derive(Clone, Debug)]
pub(super) enum Standing {
    /// No rules are known.
    Waiting,
    /// The rules cannot be used, and why.
    Blocked(ProblemStatus),
    /// The policy of the rules is proved.
    Live(Arc<Live>),
}

/// Rules with their policy.
#[derive(Debug)]
pub(super) struct Live {
    /// The rules.
    pub(super) ruleset: Ruleset,
    /// The policy of the rules.
    pub(super) policy: ProvedPolicy,
}

impl Live {
    /// How many rules there are, as the kernel counts them.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.ruleset.rules.len()).unwrap_or(u32::MAX)
    }
}

/// A client's rules come to something else than before.
#[derive(Debug)]
pub(super) struct Change {
    /// The client's address.
    pub(super) client: IpAddr,
    /// What is told of that.
    pub(super) notice: Notice,
    /// Whether something else is to be put in force.
    pub(super) is_to_be_put: bool,
    /// Whether that accepts all that was accepted before.
    pub(super) is_wider: bool,
}

/// All rules, and what they come to.
#[derive(Debug, Default)]
pub(super) struct Standings {
    rulesets: BTreeMap<IpAddr, Read>,
    /// No client is remembered for having had rules once.
    standings: BTreeMap<IpAddr, Standing>,
    surroundings: Surroundings,
}

impl Standings {
    /// Takes in a client's rules, or that it has none. Returns what that changes, if the rules
    /// are others than before.
    pub(super) fn replace(&mut self, client: IpAddr, rules: Option<Read>) -> Option<Change> {
        if self.rulesets.get(&client) == rules.as_ref() {
            return None;
        }
        match rules {
            Some(rules) => self.rulesets.insert(client, rules),
            None => self.rulesets.remove(&client),
        };
        Some(self.stand(client, self.work_out(client)))
    }

    /// Works out anew what some clients' rules come to.
    fn reconsider(&mut self, which: impl Fn(IpAddr, &Ruleset) -> bool) -> Vec<Change> {
        let mut changes = Vec::new();
        for client in self.usable(which) {
            let standing = self.work_out(client);
            let is_unchanged = match (&standing, self.of(client)) {
                (Standing::Live(now), Standing::Live(before)) => {
                    now.policy.policy() == before.policy.policy()
                }
                (Standing::Waiting | Standing::Blocked(_) | Standing::Live(_), _) => false,
            };
            if !is_unchanged {
                changes.push(self.stand(client, standing));
            }
        }
        changes
    }

    /// Takes in other DNS servers of clients.
    pub(super) fn set_resolvers(&mut self, resolvers: Vec<IpAddr>) -> Vec<Change> {
        self.surroundings.resolvers = resolvers;
        self.reconsider(|_, _| true)
    }

    /// Takes in which virtual resolvers nobody leads elsewhere.
    pub(super) fn set_not_redirected(&mut self, resolvers: BTreeSet<Ipv4Addr>) -> Vec<Change> {
        if self.surroundings.not_redirected == resolvers {
            return Vec::new();
        }
        self.surroundings.not_redirected = resolvers;
        self.reconsider(|_, _| true)
    }

    /// Takes in where a name leads. Returns where it led before. What uses the name is worked
    /// out when all such names are known: [`Self::names_changed`].
    pub(super) fn set_name(
        &mut self,
        question: &Question,
        addresses: Option<Addresses>,
    ) -> Option<Addresses> {
        match addresses {
            Some(addresses) => self.surroundings.names.insert(question.clone(), addresses),
            None => self.surroundings.names.remove(question),
        }
    }

    /// In a Whonix gateway: takes in what qubes whose default is `drop` may do with Tor's services.
    pub(super) fn set_gateway(&mut self, services: Each<Access>) -> Vec<Change> {
        let services = Some(services);
        if self.surroundings.gateway == services {
            return Vec::new();
        }
        self.surroundings.gateway = services;
        self.reconsider(|_, _| true)
    }

    /// A client's rules, with those that stand behind them in a Whonix gateway.
    fn whole<'a>(&self, ruleset: &'a Ruleset) -> Cow<'a, Ruleset> {
        match &self.surroundings.gateway {
            Some(services) => Cow::Owned(ruleset.in_gateway(services)),
            None => Cow::Borrowed(ruleset),
        }
    }

    /// Works out anew what uses one of these names.
    pub(super) fn names_changed(&mut self, changed: &BTreeSet<Question>) -> Vec<Change> {
        self.reconsider(|client, rules| uses(client, rules, changed))
    }

    /// Clients whose rules can be used and have one of these names.
    pub(super) fn users_of(&self, changed: &BTreeSet<Question>) -> Vec<IpAddr> {
        self.usable(|client, rules| uses(client, rules, changed))
    }

    fn usable(&self, which: impl Fn(IpAddr, &Ruleset) -> bool) -> Vec<IpAddr> {
        let usable = self.rulesets.iter().filter_map(|(client, rules)| match rules {
            Ok(rules) if which(*client, rules) => Some(*client),
            Ok(_) | Err(_) => None,
        });
        usable.collect()
    }

    fn stand(&mut self, client: IpAddr, standing: Standing) -> Change {
        let notice = match &standing {
            Standing::Waiting => Notice::Waiting { client },
            Standing::Blocked(ProblemStatus { origin, reason, .. }) => {
                Notice::Blocked { client, why: format!("{origin}: {reason}") }
            }
            Standing::Live(live) => Notice::Live {
                client,
                rules: live.ruleset.rules.len(),
                cells_checked: live.policy.proof().cells_checked,
            },
        };
        let is_blocked = matches!(standing, Standing::Blocked(_));
        let is_wider = match (self.of(client), &standing) {
            (Standing::Live(before), Standing::Live(now)) => {
                wider::accepts_all_of(now.policy.policy(), before.policy.policy())
            }
            (Standing::Waiting | Standing::Blocked(_) | Standing::Live(_), _) => false,
        };
        let before = match standing {
            Standing::Waiting => self.standings.remove(&client),
            Standing::Blocked(_) | Standing::Live(_) => self.standings.insert(client, standing),
        };
        // For another reason, but in force is the same.
        let is_same = is_blocked && matches!(before, Some(Standing::Blocked(_)));
        Change { client, notice, is_to_be_put: !is_same, is_wider }
    }

    fn work_out(&self, client: IpAddr) -> Standing {
        let ruleset = match self.rulesets.get(&client) {
            None => return Standing::Waiting,
            Some(Err(SourceError { origin, error })) => {
                return Standing::Blocked(ProblemStatus {
                    origin: origin.clone(),
                    line: error.line,
                    text: error.text.clone(),
                    reason: error.problem.to_string(),
                });
            }
            Some(Ok(ruleset)) => self.whole(ruleset),
        };
        let blocked = |reason: String| {
            let origin = format!("rules of {client}");
            Standing::Blocked(ProblemStatus { origin, line: None, text: String::new(), reason })
        };
        let resolved = self.resolve(client, &ruleset);
        let policy = match compile::compile(&resolved) {
            Ok(policy) => policy,
            Err(error) => return blocked(error.to_string()),
        };
        match check::prove(&resolved, policy) {
            Ok(policy) => Standing::Live(Arc::new(Live { ruleset: ruleset.into_owned(), policy })),
            Err(error) => blocked(error.to_string()),
        }
    }

    /// A client's rules, with what is known about names.
    pub(super) fn resolve(&self, client: IpAddr, ruleset: &Ruleset) -> ResolvedRuleset {
        resolve::resolve(Family::from(client), ruleset, &self.surroundings)
    }

    /// What a client's rules come to.
    pub(super) fn of(&self, client: IpAddr) -> &Standing {
        self.standings.get(&client).unwrap_or(&Standing::Waiting)
    }

    /// What a client's rules come to, if they can be used.
    pub(super) fn live(&self, client: IpAddr) -> Option<&Live> {
        match self.of(client) {
            Standing::Live(live) => Some(live),
            Standing::Waiting | Standing::Blocked(_) => None,
        }
    }

    /// What is to be put in force for a client.
    pub(super) fn installation(&self, client: IpAddr) -> Installation {
        match self.of(client) {
            Standing::Waiting => Installation::Waiting,
            Standing::Blocked(_) => Installation::Blocked,
            Standing::Live(live) => {
                Installation::Policy { policy: live.policy.clone(), rules: live.count() }
            }
        }
    }

    /// All addresses of which the source told rules, whether these can be used or not.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.rulesets.keys().copied()
    }

    /// What rules refer to without saying it.
    pub(super) fn surroundings(&self) -> &Surroundings {
        &self.surroundings
    }

    /// The names that make a difference to some of these clients.
    pub(super) fn wanted_names(&self, is_meant: impl Fn(IpAddr) -> bool) -> BTreeSet<Question> {
        let rulesets = self.rulesets.iter().filter(|(client, _)| is_meant(**client));
        let usable = rulesets.filter_map(|(client, rules)| Some((client, rules.as_ref().ok()?)));
        let names = usable.flat_map(|(client, rules)| {
            let family = Family::from(*client);
            let rules = self.whole(rules);
            let names = relevant::names(&rules).into_iter();
            let questions = names.map(|name| Question { name: name.to_owned(), family });
            questions.collect::<Vec<_>>()
        });
        names.collect()
    }

    /// Numbers of the rules that use a name, by client.
    pub(super) fn users(&self, question: &Question) -> BTreeMap<IpAddr, Vec<u16>> {
        let of_family =
            self.rulesets.iter().filter(|(client, _)| Family::from(**client) == question.family);
        let users = of_family.filter_map(|(client, rules)| {
            let rules = rules.as_ref().ok()?.rules.iter();
            let using = rules.filter(|rule| match &rule.destination {
                Destination::Name(name) => *name == question.name,
                Destination::Any | Destination::Network(_) | Destination::Tor(_) => false,
            });
            let numbers: Vec<u16> = using.map(|rule| rule.number).collect();
            (!numbers.is_empty()).then_some((*client, numbers))
        });
        users.collect()
    }

    /// Where the names in a client's rules lead, as far as they are resolved.
    pub(super) fn resolved_names(&self, client: IpAddr) -> BTreeMap<String, BTreeSet<IpAddr>> {
        let rules = self.live(client).map(|live| &live.ruleset);
        let family = Family::from(client);
        let resolved = rules.into_iter().flat_map(names).filter_map(|name| {
            let question = Question { name: name.to_owned(), family };
            let addresses = self.surroundings.names.get(&question)?;
            Some((question.name, addresses.accept.clone()))
        });
        resolved.collect()
    }

    /// Names in rules that may lead to an address.
    pub(super) fn names_of(&self, address: IpAddr) -> impl Iterator<Item = &str> {
        let family = Family::from(address);
        let names = self.surroundings.names.iter().filter(move |(question, addresses)| {
            question.family == family && addresses.accept.contains(&address)
        });
        names.map(|(question, _)| question.name.as_str())
    }
}

fn uses(client: IpAddr, rules: &Ruleset, changed: &BTreeSet<Question>) -> bool {
    let family = Family::from(client);
    names(rules).any(|name| changed.contains(&Question { name: name.to_owned(), family }))
}

fn names(rules: &Ruleset) -> impl Iterator<Item = &str> {
    rules.rules.iter().filter_map(|rule| match &rule.destination {
        Destination::Name(name) => Some(name.as_str()),
        Destination::Any | Destination::Network(_) | Destination::Tor(_) => None,
    })
}
