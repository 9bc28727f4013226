"""The demo model: a tiny Wan pipeline, trained by these scripts on clips that they draw. See demo/README.md."""
