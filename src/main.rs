//! The `secateur` command. Parses, calls the library, prints.

fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
