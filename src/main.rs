//! The `reslora-compile` program.

fn main() -> std::process::ExitCode {
    reslora_compile::main()
}
