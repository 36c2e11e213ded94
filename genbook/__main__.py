"What `python -m genbook` does: the same as `genbook`."

from genbook.lab.cli import main

if __name__ == "__main__":
    main()
