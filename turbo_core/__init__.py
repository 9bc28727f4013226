"""The models and their mathematics: torch, einops and safetensors only."""
