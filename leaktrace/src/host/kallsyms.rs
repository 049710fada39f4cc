//! Addresses of kernel functions, from /proc/kallsyms.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
};

/// The addresses of functions of the kernel proper, in the order of `names`; nothing where one
/// is not there, is not unique, or is hidden (kernel.kptr_restrict).
pub fn addresses(names: &[&str]) -> Vec<Option<u64>> {
    let mut found: Vec<Vec<u64>> = vec![Vec::new(); names.len()];
    let Ok(file) = File::open("/proc/kallsyms") else { return vec![None; names.len()] };
    for line in BufReader::new(file).lines().map_while(Result::ok) {
        let mut parts = line.split_ascii_whitespace();
        let (Some(address), Some(_), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        for (wanted, addresses) in names.iter().zip(&mut found) {
            if *wanted == name
                && let Ok(address) = u64::from_str_radix(address, 16)
            {
                addresses.push(address);
            }
        }
    }
    found
        .into_iter()
        .map(|addresses| match addresses.as_slice() {
            [address] if *address != 0 => Some(*address),
            _ => None,
        })
        .collect()
}
