//! Lost blocks among themselves: which of them lead to the others.

use std::collections::HashMap;

/// The lost blocks of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Blocks that no other lost block leads to; of blocks that lead to each other, the oldest.
    pub leaders: Vec<u32>,
    /// Every other lost block, with the leader that leads to it.
    pub led: Vec<(u32, u32)>,
}

/// What the search knows of a block.
#[derive(Clone, Copy)]
struct Visit {
    order: u32,
    low: u32,
    is_on_stack: bool,
    group: u32,
}

/// Divides lost blocks into leaders and those that they lead to. `edges` gives the blocks that a
/// block leads to; those that are not lost are passed over.
pub fn judge<I: Iterator<Item = u32>>(
    lost: &[u32],
    edges: impl Fn(u32) -> I,
    birth: impl Fn(u32) -> u64,
) -> Lost {
    // `lost` is sorted.
    let number = |block: u32| lost.binary_search(&block).ok();
    let groups = groups(lost, &edges, &number);
    let count = groups.iter().map(|group| group + 1).max().unwrap_or(0) as usize;
    let mut has_holder = vec![false; count];
    for (at, block) in lost.iter().enumerate() {
        let own = groups.get(at).copied().unwrap_or(0);
        for target in edges(*block).filter_map(number) {
            let other = groups.get(target).copied().unwrap_or(0);
            if other != own
                && let Some(held) = has_holder.get_mut(other as usize)
            {
                *held = true;
            }
        }
    }
    // The oldest of each group that nobody leads to.
    let mut leader_of: HashMap<u32, u32> = HashMap::new();
    for (at, block) in lost.iter().enumerate() {
        let group = groups.get(at).copied().unwrap_or(0);
        if has_holder.get(group as usize) == Some(&false) {
            let leader = leader_of.entry(group).or_insert(*block);
            if (birth(*block), *block) < (birth(*leader), *leader) {
                *leader = *block;
            }
        }
    }
    let mut leaders: Vec<u32> = leader_of.into_values().collect();
    leaders.sort_unstable_by_key(|leader| (birth(*leader), *leader));
    let mut is_led = vec![false; lost.len()];
    for leader in leaders.iter().filter_map(|leader| number(*leader)) {
        if let Some(is_led) = is_led.get_mut(leader) {
            *is_led = true;
        }
    }
    let mut led = Vec::new();
    for leader in &leaders {
        let mut left = vec![*leader];
        while let Some(source) = left.pop() {
            for target in edges(source) {
                if let Some(is_led) = number(target).and_then(|at| is_led.get_mut(at))
                    && !*is_led
                {
                    *is_led = true;
                    led.push((target, *leader));
                    left.push(target);
                }
            }
        }
    }
    Lost { leaders, led }
}

/// The group of each lost block: blocks that lead to each other are in one (Tarjan's algorithm,
/// without recursion, as a list may have millions of blocks).
fn groups<I: Iterator<Item = u32>>(
    lost: &[u32],
    edges: &impl Fn(u32) -> I,
    number: &impl Fn(u32) -> Option<usize>,
) -> Vec<u32> {
    let none = Visit { order: 0, low: 0, is_on_stack: false, group: 0 };
    let mut visits = vec![none; lost.len()];
    let (mut order, mut group) = (0, 0);
    let mut stack: Vec<usize> = Vec::new();
    for start in 0..lost.len() {
        if visits.get(start).is_none_or(|visit| visit.order != 0) {
            continue;
        }
        // Blocks under way, with those that are still to be visited from each.
        let mut path: Vec<(usize, I)> = Vec::new();
        let mut next = Some(start);
        loop {
            if let Some(at) = next.take()
                && let (Some(visit), Some(block)) = (visits.get_mut(at), lost.get(at))
            {
                order += 1;
                *visit = Visit { order, low: order, is_on_stack: true, group: 0 };
                stack.push(at);
                path.push((at, edges(*block)));
            }
            let Some((at, targets)) = path.last_mut() else { break };
            let at = *at;
            let mut low = visits.get(at).map_or(0, |visit| visit.low);
            for target in targets.by_ref().filter_map(number) {
                match visits.get(target) {
                    Some(visit) if visit.order == 0 => {
                        next = Some(target);
                        break;
                    }
                    Some(visit) if visit.is_on_stack => low = low.min(visit.order),
                    _ => {}
                }
            }
            if let Some(visit) = visits.get_mut(at) {
                visit.low = low;
            }
            if next.is_some() {
                continue;
            }
            path.pop();
            if let Some((above, _)) = path.last()
                && let Some(visit) = visits.get_mut(*above)
            {
                visit.low = visit.low.min(low);
            }
            if visits.get(at).is_some_and(|visit| visit.order == low) {
                while let Some(member) = stack.pop() {
                    if let Some(visit) = visits.get_mut(member) {
                        (visit.is_on_stack, visit.group) = (false, group);
                    }
                    if member == at {
                        break;
                    }
                }
                group += 1;
            }
        }
    }
    visits.into_iter().map(|visit| visit.group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks 0 to 9, born in that order unless `births` says otherwise.
    fn check(edges: &[(u32, u32)], births: &[(u32, u64)], leaders: &[u32], led: &[(u32, u32)]) {
        let lost: Vec<u32> = (0..10).collect();
        let of = |block: u32| {
            let of: Vec<u32> =
                edges.iter().filter(|(from, _)| *from == block).map(|(_, to)| *to).collect();
            of.into_iter()
        };
        let birth = |block: u32| {
            let given = births.iter().find(|(of, _)| *of == block);
            given.map_or(u64::from(block), |(_, birth)| *birth)
        };
        let mut found = judge(&lost, of, birth);
        found.leaders.sort_unstable();
        found.led.sort_unstable();
        assert_eq!((found.leaders.as_slice(), found.led.as_slice()), (leaders, led), "{edges:?}");
    }

    #[test]
    fn each_block_is_its_own_leader_without_edges() {
        check(&[], &[], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], &[]);
        // Those to blocks that are not lost, and to itself, change nothing.
        check(&[(3, 3), (4, 77)], &[], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], &[]);
    }

    #[test]
    fn the_head_leads_a_list() {
        let list: Vec<(u32, u32)> = (1..10).rev().map(|at| (at, at - 1)).collect();
        let led: Vec<(u32, u32)> = (0..9).map(|at| (at, 9)).collect();
        check(&list, &[], &[9], &led);
    }

    #[test]
    fn the_oldest_leads_a_cycle() {
        let cycle = [(0, 1), (1, 2), (2, 0)];
        let rest = [3, 4, 5, 6, 7, 8, 9];
        let leaders = |first: u32| [&[first][..], &rest].concat();
        let mut sorted = leaders(0);
        sorted.sort_unstable();
        check(&cycle, &[], &sorted, &[(1, 0), (2, 0)]);
        let mut sorted = leaders(2);
        sorted.sort_unstable();
        check(&cycle, &[(2, 0), (0, 50)], &sorted, &[(0, 2), (1, 2)]);
    }

    #[test]
    fn a_cycle_that_another_block_leads_to_has_no_leader() {
        check(
            &[(0, 1), (1, 0), (9, 0), (1, 5), (5, 6), (6, 5)],
            &[],
            &[2, 3, 4, 7, 8, 9],
            &[(0, 9), (1, 9), (5, 9), (6, 9)],
        );
    }

    #[test]
    fn two_cycles_with_a_bridge_have_one_leader() {
        check(
            &[(0, 1), (1, 0), (1, 2), (2, 3), (3, 2), (4, 5), (5, 6), (6, 4), (6, 7), (8, 7)],
            &[],
            &[0, 4, 8, 9],
            &[(1, 0), (2, 0), (3, 0), (5, 4), (6, 4), (7, 4)],
        );
    }

    /// It needs no stack of its own.
    #[test]
    fn a_long_list_is_no_trouble() {
        let lost: Vec<u32> = (0..200_000).collect();
        let found =
            judge(&lost, |block| (block + 1 < 200_000).then_some(block + 1).into_iter(), u64::from);
        assert_eq!((found.leaders.as_slice(), found.led.len()), (&[0][..], 199_999));
    }
}
