//! stub
use anyhow::Result;
/// Demo
#[derive(clap::Args)]
pub struct Demo {}
/// Test
#[derive(clap::Args)]
pub struct Test {}
/// Bench
#[derive(clap::Subcommand)]
pub enum Bench {
    /// p
    Prog,
}
pub fn build() -> Result<()> {
    Ok(())
}
pub fn demo(_: &Demo) -> Result<()> {
    Ok(())
}
pub fn test(_: &Test) -> Result<()> {
    Ok(())
}
pub fn ci() -> Result<()> {
    Ok(())
}
pub fn bench(_: &Bench) -> Result<()> {
    Ok(())
}
