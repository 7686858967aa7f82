from setuptools import setup

setup()  # everything that describes the package is in pyproject.toml
