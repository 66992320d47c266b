"""Commands that use a running service, and those of `tandem train`. `tandem.cli.main` declares them all."""
