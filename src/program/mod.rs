//! The program: operations over named slots.
