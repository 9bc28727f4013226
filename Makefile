# make demo        two videos by the demo model that the repository carries, in demo-videos/
# make test        lint, unit and kernel tests, then the pack in a real ComfyUI and its frontend where they are found
# make pictures    the shipped workflows in ComfyUI's frontend, to docs/pictures
# make test-hosts  the host tests on every tested ComfyUI version (TURBOWAN_HOSTS, comma-separated checkouts)

PYTHON ?= python3
# Any torch from 2.4 on will do; a CPU build is enough.
TORCH ?= torch==2.13.0
COMFYUI_DIR ?= $(HOME)/comfy/ComfyUI
TURBOWAN_HOSTS ?= $(COMFYUI_DIR)-0.8.0,$(COMFYUI_DIR)-0.18.1,$(COMFYUI_DIR)

VENV := .venv
READY := $(VENV)/.ready
STANDALONE := $(VENV)/.standalone
PIP := $(VENV)/bin/pip install --quiet --disable-pip-version-check
DEMO_VIDEOS ?= demo-videos
PYTEST := $(VENV)/bin/pytest

.PHONY: demo test lint unit hosts browser pictures test-hosts format clean

# Needs no GPU; a second run only makes the videos.
demo: $(STANDALONE)
	mkdir -p $(DEMO_VIDEOS)
	$(VENV)/bin/turbowan generate "a red ball bouncing to the right" --force -o $(DEMO_VIDEOS)/text-to-video.mp4
	$(VENV)/bin/turbowan generate "a yellow star moving to the left" --image demo/first_frame.png --force \
	  -o $(DEMO_VIDEOS)/image-to-video.mp4

test: lint unit hosts

$(STANDALONE): pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) --editable '.[core,standalone]'
	touch $@

$(READY): $(STANDALONE)
	$(PIP) --editable '.[core,standalone,test]'
	touch $@

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

unit: $(READY)
	$(PYTEST) tests --ignore tests/host --ignore tests/browser --numprocesses auto

# Without a ComfyUI these skip, loudly and counted; with one, its environment is made the first time.
hosts: $(READY)
	if test -f "$(COMFYUI_DIR)/main.py"; then \
	  COMFYUI_DIR="$(COMFYUI_DIR)" $(VENV)/bin/python tests/host/make_venv.py; fi
	-$(VENV)/bin/python tests/browser/make_browser.py
	COMFYUI_DIR="$(COMFYUI_DIR)" $(PYTEST) tests/host tests/browser

# Debian and Ubuntu, as root: chromium for the browser tests.
browser: $(READY)
	apt-get update -qq && apt-get install -y -qq chromium
	$(VENV)/bin/python tests/browser/make_browser.py

pictures: $(READY)
	COMFYUI_DIR="$(COMFYUI_DIR)" PYTHONPATH=tests $(VENV)/bin/python -m browser.pictures

test-hosts: $(READY)
	COMFYUI_DIR="$(COMFYUI_DIR)" TURBOWAN_HOSTS="$(TURBOWAN_HOSTS)" $(VENV)/bin/python tests/host/make_venv.py
	COMFYUI_DIR="$(COMFYUI_DIR)" TURBOWAN_HOSTS="$(TURBOWAN_HOSTS)" $(PYTEST) tests/host

format: $(READY)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) $(DEMO_VIDEOS) build dist *.egg-info
