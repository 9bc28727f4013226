"""What `turbowan doctor` and TurboDoctor look at: probes that never fail, findings with a remedy each."""
