from setuptools import setup  # everything that describes the package is in pyproject.toml
setup()
