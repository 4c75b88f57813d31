//! For which workloads an engine is started once.

use super::check::CONTEXT;
use super::workload::Workload;

/// How much more an engine whose cache is of a fixed size may be told than a workload needs.
const MOST: usize = 2;

/// The longest context and the most requests at a time of some workloads, and of the check of an engine's logits.
pub fn needs(workloads: &[&Workload]) -> (usize, usize) {
    let context = workloads.iter().map(|w| w.most_context()).fold(CONTEXT, usize::max);
    (context, workloads.iter().map(|w| w.most_requests_at_a_time()).max().unwrap_or(1))
}

/// Workloads that one start serves: those that keep nothing of prompts, then those that may. For an engine whose steps go over all of the
/// context that it was told (`fixed`), those together of which none needs less than half of the longest context, and which together are
/// told at most twice the tokens of context that one of them needs.
pub fn groups<'w>(workloads: &[&'w Workload], fixed: bool) -> Vec<Vec<&'w Workload>> {
    let mut list: Vec<Vec<&Workload>> = Vec::new();
    for prefix in [false, true] {
        let from = list.len();
        for workload in workloads.iter().copied().filter(|w| w.prefix == prefix) {
            let fits = |group: &&mut Vec<&Workload>| !fixed || fit(&[&group[..], &[workload]].concat());
            match list[from..].iter_mut().find(fits) {
                Some(group) => group.push(workload),
                None => list.push(vec![workload]),
            }
        }
    }
    list
}

fn fit(workloads: &[&Workload]) -> bool {
    let (context, sequences) = needs(workloads);
    let each = workloads.iter().map(|w| needs(&[w]));
    let largest = each.clone().map(|(context, sequences)| context * sequences).max().unwrap_or(0);
    each.map(|(context, _)| context).all(|least| context <= MOST * least) && context * sequences <= MOST * largest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str], fixed: bool) -> Vec<String> {
        let all: Vec<Workload> = list.iter().map(|name| Workload::named(name, false, 131_072).unwrap()).collect();
        let refs: Vec<&Workload> = all.iter().collect();
        let name = |group: &Vec<&Workload>| group.iter().map(|w| &w.name[..]).collect::<Vec<_>>().join(" ");
        groups(&refs, fixed).iter().map(name).collect()
    }

    #[test]
    fn a_cache_of_a_fixed_size_is_at_most_twice_what_a_workload_needs() {
        let all = ["batch-1", "chat", "batch-32", "documents", "sustained-1024", "sustained-128", "code"];
        assert_eq!(
            names(&all, false),
            ["batch-1 batch-32 documents sustained-1024 sustained-128 code", "chat"],
            "one start each, with and without what is kept of prompts"
        );
        // The context of documents would be that of all, 128 times what batch-1 needs.
        assert_eq!(names(&all, true), ["batch-1 batch-32 sustained-128", "documents", "sustained-1024 code", "chat"]);
        let of = |list: &[&str]| {
            let all: Vec<Workload> = list.iter().map(|name| Workload::named(name, false, 131_072).unwrap()).collect();
            fit(&all.iter().collect::<Vec<_>>())
        };
        assert!(of(&["batch-1", "batch-32"]) && !of(&["batch-1", "documents"]) && of(&["documents"]));
    }
}
