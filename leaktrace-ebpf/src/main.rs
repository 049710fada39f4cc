//! leaktrace's BPF programs: they count allocations in maps and decide nothing else.
//!
//! Entry points are thin: they decode arguments and call [`ledger`], the only writer of the
//! outstanding blocks and of the call sites' counters. Nothing is sent per event.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(internal_features, reason = "atomics are intrinsics for the BPF target")]

mod atomic;
mod counters;
mod filter;
mod held;
mod kernel;
mod ledger;
mod loss;
mod maps;
mod pair;
mod stack;
mod table;
mod task;
mod user;

/// The programs use helpers that the kernel lends to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The verifier refuses a program that could get here.
    loop {}
}
